-- For each (next hop, class) with live mail: what waits, what of it is due, for how long, and what is being sent.
-- Next hops are found by skipping through deliveries_due; at most $1 rows are counted of each, so that a long queue costs no more.
WITH RECURSIVE hop(name) AS (
    (SELECT next_hop FROM mail.deliveries WHERE status IN ('queued', 'rendered') ORDER BY next_hop LIMIT 1)
    UNION ALL
    SELECT (SELECT d.next_hop FROM mail.deliveries d
            WHERE d.status IN ('queued', 'rendered') AND d.next_hop > hop.name
            ORDER BY d.next_hop LIMIT 1)
    FROM hop WHERE hop.name IS NOT NULL
), waiting AS (
    SELECT hop.name AS next_hop, c.class, w.waiting, w.due, w.oldest_s
    FROM hop CROSS JOIN unnest(ARRAY['auth', 'transactional', 'relay']) AS c(class)
    CROSS JOIN LATERAL (
        SELECT count(*)::int AS waiting, (count(*) FILTER (WHERE due_at <= mail.now()))::int AS due,
               coalesce(greatest(extract(epoch FROM mail.now() - min(due_at)), 0), 0)::float8 AS oldest_s
        FROM (SELECT d.due_at FROM mail.deliveries d
              WHERE d.next_hop = hop.name AND d.class = c.class AND d.status IN ('queued', 'rendered')
              ORDER BY d.due_at LIMIT $1::int) AS first
    ) w
    WHERE hop.name IS NOT NULL AND w.waiting > 0
), claimed AS (
    SELECT next_hop, class, count(*)::int AS sending,
           extract(epoch FROM mail.now() - min(claimed_at))::float8 AS claimed_s
    FROM (SELECT next_hop, class, claimed_at FROM mail.deliveries WHERE status = 'sending' LIMIT $1) AS live
    GROUP BY 1, 2
)
SELECT coalesce(w.next_hop, c.next_hop) AS next_hop, coalesce(w.class, c.class) AS class, coalesce(w.waiting, 0) AS waiting,
       coalesce(w.due, 0) AS due, coalesce(w.oldest_s, 0) AS oldest_s, coalesce(c.sending, 0) AS sending,
       coalesce(c.claimed_s, 0) AS claimed_s
FROM waiting w FULL JOIN claimed c ON (w.next_hop, w.class) = (c.next_hop, c.class)
