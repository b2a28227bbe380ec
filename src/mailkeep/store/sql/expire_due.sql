-- waiting -> expired for up to $1 rows whose time ran out, suspects and rows of parked hops among them.
WITH late AS (
    SELECT id FROM mail.deliveries
    WHERE status IN ('queued', 'rendered') AND expires_at <= mail.now()
    LIMIT $1::int
    FOR UPDATE SKIP LOCKED
), expired AS (
    UPDATE mail.deliveries d
    SET status = 'expired', finished_at = mail.now(), due_at = NULL
    FROM late
    WHERE d.id = late.id AND d.status IN ('queued', 'rendered')
    RETURNING d.id, d.sensitive
), erased AS (
    DELETE FROM mail.payloads p USING expired e WHERE p.delivery_id = e.id AND e.sensitive
)
SELECT id FROM expired
