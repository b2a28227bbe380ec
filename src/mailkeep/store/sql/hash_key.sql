-- The deployment's key for hashes of addresses and commands, and whether this role may make partitions: one that may only read
-- leaves that to the service.
SELECT hash_key, has_function_privilege('mail.ensure_partitions(date, date)', 'EXECUTE') AS makes_partitions FROM mail.deployment
