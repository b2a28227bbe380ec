-- Up to $2 keys, the newest first; with $1 also those that are revoked or expired.
SELECT id, name, senders, actor, created_at, expires_at, last_used_at, revoked_at, revoked_by
FROM mail.api_keys
WHERE $1::bool OR (revoked_at IS NULL AND (expires_at IS NULL OR expires_at > mail.now()))
ORDER BY created_at DESC, id
LIMIT $2::int
