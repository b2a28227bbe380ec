-- For each of the webhooks $1 that is not disabled: how many events it is still to be told, counted up to $2 behind its cursor and
-- again among its retries, and for how many milliseconds the oldest of them waits (0 if there is none). By the index
-- events_in_order and the primary key of webhook_retries.
SELECT w.name, ahead.count + retries.count AS waiting,
       greatest(extract(epoch FROM mail.now() - least(ahead.oldest, retries.oldest))::float8 * 1000, 0) AS behind_ms
FROM mail.webhooks w
CROSS JOIN LATERAL (
    SELECT count(*) AS count, min(occurred_at) AS oldest
    FROM (SELECT e.occurred_at FROM mail.events e
          WHERE (e.position, e.id) > (w.position, w.event_id) AND e.position < mail.event_horizon()
          ORDER BY e.position, e.id LIMIT $2::int) AS untold
) AS ahead
CROSS JOIN LATERAL (
    SELECT count(*) AS count, min(e.occurred_at) AS oldest
    FROM (SELECT event_id, position, delivery_id FROM mail.webhook_retries
          WHERE webhook = w.name AND due_at IS NOT NULL ORDER BY event_id LIMIT $2) AS r
    LEFT JOIN mail.events e ON e.position = r.position AND e.id = r.event_id AND e.delivery_id = r.delivery_id
) AS retries
WHERE w.name = ANY ($1::text[]) AND w.disabled_at IS NULL
