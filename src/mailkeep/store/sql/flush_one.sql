-- Make delivery $1 due now if it waits, also before its `send_at`; waiting -> waiting. By the primary key.
UPDATE mail.deliveries SET due_at = least(due_at, mail.now())
WHERE id = $1::uuid AND status IN ('queued', 'rendered')
RETURNING id
