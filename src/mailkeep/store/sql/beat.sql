-- Say that replica $1 lives. Answers the database's clock; no row when it was declared lost: it must start anew.
UPDATE mail.replicas SET last_seen_at = mail.now(), in_flight = $2
WHERE id = $1 AND lost_at IS NULL AND stopped_at IS NULL
RETURNING last_seen_at
