-- Read up to $2 events that webhook $1 is to be told again now, the one due longest first.
-- An event that is gone with its delivery is passed over; retention removes it.
WITH due AS MATERIALIZED (
    SELECT event_id, position, delivery_id, tries, due_at
    FROM mail.webhook_retries
    WHERE webhook = $1::text AND due_at <= mail.now()
    ORDER BY due_at
    LIMIT $2::int
)
SELECT e.id, e.delivery_id, e.position, e.status, e.attempts, e.rule, e.occurred_at,
       d.source, d.class, d.template_id, d.parent_id, d.idempotency_key, d.accepted_at, l.cause, r.tries
FROM due r
JOIN mail.events e ON e.delivery_id = r.delivery_id AND e.position = r.position AND e.id = r.event_id
JOIN mail.deliveries d ON d.id = r.delivery_id
LEFT JOIN mail.dead_letters l ON l.delivery_id = r.delivery_id AND e.status = 'dead_letter'
ORDER BY r.due_at
