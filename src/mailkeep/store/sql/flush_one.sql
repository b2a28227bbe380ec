-- Make delivery $1 due now if it waits, also before its `send_at`; waiting -> waiting. By the primary key.
-- Records who ($2) did it and why ($3).
WITH flushed AS (
    UPDATE mail.deliveries SET due_at = least(due_at, mail.now())
    WHERE id = $1::uuid AND status IN ('queued', 'rendered')
    RETURNING id, status
), recorded AS (
    INSERT INTO mail.operator_changes (delivery_id, verb, status, actor, reason)
    SELECT id, 'flush', status, $2::text, $3::text FROM flushed
)
SELECT id FROM flushed
