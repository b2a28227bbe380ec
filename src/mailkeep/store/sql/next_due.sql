-- Seconds until the next waiting row of one of the next hops in $1 is due (at most $2); NULL when none waits.
SELECT extract(epoch FROM least(min(d.due_at), mail.now() + $2::float8 * interval '1 second') - mail.now())::float8
FROM unnest($1::text[], $3::text[]) AS w(next_hop, class)
CROSS JOIN LATERAL (
    SELECT due_at FROM mail.deliveries
    WHERE next_hop = w.next_hop AND class = w.class AND status IN ('queued', 'rendered')
    ORDER BY due_at LIMIT 1
) d
