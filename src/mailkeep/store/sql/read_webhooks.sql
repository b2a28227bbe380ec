-- Read how every webhook fares: what it was told, what waits for another try, what was given up, and how many seconds the
-- oldest event that it has not been told waits.
SELECT w.name, w.told, w.told_at, w.problem, w.disabled_at, w.held_by, retries.waiting, retries.given_up,
       extract(epoch FROM mail.now() - next.occurred_at)::float8 AS behind_s
FROM mail.webhooks w
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE due_at IS NOT NULL) AS waiting, count(*) FILTER (WHERE due_at IS NULL) AS given_up
    FROM mail.webhook_retries r WHERE r.webhook = w.name
) AS retries
LEFT JOIN LATERAL (
    SELECT occurred_at FROM mail.events e
    WHERE (e.position, e.id) > (w.position, w.event_id) AND e.position < mail.event_horizon()
    ORDER BY e.position, e.id LIMIT 1
) AS next ON true
ORDER BY w.name
