-- How many blocks the table of idempotency keys has, by the column `blocks`; none when it was swept today already.
SELECT (pg_relation_size('mail.idempotency_keys') / current_setting('block_size')::int)::int AS blocks
FROM mail.deployment
WHERE keys_swept_on < (mail.now() AT TIME ZONE 'UTC')::date
