-- The keys $1 that are in force, with for how many seconds yet, and whether their use this hour is still to be noted. By the
-- primary key.
SELECT id, name, secret_hash, senders, extract(epoch FROM expires_at - mail.now())::float8 AS left_s,
       (last_used_at >= date_trunc('hour', mail.now())) IS NOT TRUE AS is_first_use
FROM mail.api_keys
WHERE id = ANY ($1::text[]) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > mail.now())
