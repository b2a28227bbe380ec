-- Say that replica $1 lives, with $2 claims in memory, the next hops in $3 out for it, and what it did since it began in $4. Answers the database's clock; no row
-- when it was declared lost: it must start anew.
UPDATE mail.replicas SET last_seen_at = mail.now(), in_flight = $2, hops_out = $3::text::jsonb, totals = $4::text::jsonb
WHERE id = $1 AND lost_at IS NULL AND stopped_at IS NULL
RETURNING last_seen_at
