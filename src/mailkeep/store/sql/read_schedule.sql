-- For each class: how many deliveries wait, and for how many milliseconds the one due longest has been due (0 if none is).
-- By the index deliveries_due alone, never by what has ended.
SELECT class, count(*) AS depth,
       greatest(extract(epoch FROM mail.now() - min(due_at))::float8 * 1000, 0) AS oldest_age_ms
FROM mail.deliveries
WHERE status IN ('queued', 'rendered')
GROUP BY class
