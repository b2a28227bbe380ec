-- waiting or held -> cancelled, up to $3 deliveries to the recipient with the hash $1, recorded as done by $2; those that a
-- scheduler is claiming are passed over.
WITH chosen AS (
    SELECT d.id
    FROM mail.recipients r JOIN mail.deliveries d ON d.id = r.delivery_id
    WHERE r.address_hash = $1::bytea AND d.status IN ('queued', 'rendered', 'held')
    LIMIT $3::int
    FOR UPDATE OF d SKIP LOCKED
), cancelled AS (
    UPDATE mail.deliveries d
    SET status = 'cancelled', finished_at = mail.now(), due_at = NULL, last_reason = 'erased on request',
        last_rule = 'operator'
    FROM chosen c
    WHERE d.id = c.id AND d.status IN ('queued', 'rendered', 'held')
    RETURNING d.id
), recorded AS (
    INSERT INTO mail.operator_changes (delivery_id, verb, status, actor, reason)
    SELECT id, 'cancel', 'cancelled', $2::text, 'erased on request' FROM cancelled
)
SELECT id FROM cancelled
