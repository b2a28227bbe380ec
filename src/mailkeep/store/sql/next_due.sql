-- Seconds until the next waiting row of one of the (next hop, class) pairs in $1, $3 is due, at most $2; NULL: none waits.
-- The arrays are hidden from the planner: it would else take two pairs for cheaper than the usual estimate, and plan anew for all days
-- that are kept each time it is asked.
SELECT least(extract(epoch FROM min(d.due_at) - mail.now())::float8,
             CASE WHEN min(d.due_at) IS NOT NULL THEN $2::float8 END)
FROM unnest((SELECT $1::text[]), (SELECT $3::text[])) AS w(next_hop, class)
CROSS JOIN LATERAL (
    SELECT due_at FROM mail.deliveries
    WHERE next_hop = w.next_hop AND class = w.class AND status IN ('queued', 'rendered')
    ORDER BY due_at LIMIT 1
) d
