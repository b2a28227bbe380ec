-- Make up to $6 deliveries of next hop $1 and class $2 due now that wait for a later attempt; waiting -> waiting.
-- Goes on after ($3, $4), the due_at and id that the batch before ended with, so that each is met once. $5 is a domain
-- or null. What was never tried waits for its `send_at` and is left alone. Locks with SKIP LOCKED by deliveries_due:
-- whoever holds a row is about to move it on. Records who ($7) did it and why ($8).
WITH later AS (
    SELECT id, due_at
    FROM mail.deliveries
    WHERE next_hop = $1::text AND class = $2::text AND status IN ('queued', 'rendered')
      AND due_at > mail.now() AND due_at >= $3::timestamptz AND (due_at, id) > ($3, $4::uuid)
      AND attempts > 0
      AND ($5::text IS NULL OR recipient_domain = $5)
    ORDER BY due_at, id
    LIMIT $6::int
    FOR UPDATE SKIP LOCKED
), flushed AS (
    UPDATE mail.deliveries d
    SET due_at = mail.now()
    FROM later
    WHERE d.id = later.id AND d.status IN ('queued', 'rendered')
    RETURNING later.id, later.due_at, d.status
), recorded AS (
    INSERT INTO mail.operator_changes (delivery_id, verb, status, actor, reason)
    SELECT id, 'flush', status, $7::text, $8::text FROM flushed
)
SELECT id, due_at FROM flushed ORDER BY due_at, id
