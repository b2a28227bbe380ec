-- Revoke key $1 for good, by $2; one that was revoked before stays as it is. By the primary key.
UPDATE mail.api_keys
SET revoked_at = coalesce(revoked_at, mail.now()), revoked_by = coalesce(revoked_by, $2::text)
WHERE id = $1::text
RETURNING id, name, senders, actor, created_at, expires_at, last_used_at, revoked_at, revoked_by
