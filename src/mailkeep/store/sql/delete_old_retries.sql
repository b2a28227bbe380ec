-- Delete up to $1 retries of events that are gone with their deliveries.
DELETE FROM mail.webhook_retries r WHERE (r.webhook, r.event_id) IN (
    SELECT w.webhook, w.event_id FROM mail.webhook_retries w
    WHERE NOT EXISTS (SELECT FROM mail.deliveries d WHERE d.id = w.delivery_id) LIMIT $1::int)
RETURNING r.event_id
