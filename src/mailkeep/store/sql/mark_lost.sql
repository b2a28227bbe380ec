-- Declare replicas lost that were silent for longer than $1 seconds. The row lock settles it against a late beat.
UPDATE mail.replicas SET lost_at = mail.now()
WHERE lost_at IS NULL AND stopped_at IS NULL AND last_seen_at < mail.now() - $1::float8 * interval '1 second'
RETURNING id
