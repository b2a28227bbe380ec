-- Suppressions in force, the newest first, before the id $1, of the address hash $2 and for the reason $3 where given; at
-- most $4.
SELECT id AS suppression_id, address, reason, evidence, rule, delivery_id, attempt, actor, created_at, expires_at
FROM mail.suppressions
WHERE ($1::uuid IS NULL OR id < $1) AND ($2::bytea IS NULL OR address_hash = $2) AND ($3::text IS NULL OR reason = $3)
  AND (expires_at IS NULL OR expires_at > mail.now())
ORDER BY id DESC
LIMIT $4::int
