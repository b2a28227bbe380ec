-- The deployment's key for hashes of addresses and commands.
SELECT hash_key FROM mail.deployment
