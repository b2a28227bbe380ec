-- Say that replica $1 left in order.
UPDATE mail.replicas SET stopped_at = mail.now(), in_flight = 0 WHERE id = $1 AND stopped_at IS NULL
