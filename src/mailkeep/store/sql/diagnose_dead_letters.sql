-- Dead letters buried in the last $1 seconds, the newest $2, by cause and by how their last attempt ended. By the index
-- dead_letters_buried_at and the primary keys.
SELECT l.cause, d.next_hop, a.status, a.phase, a.rule, count(*)::int AS count,
       extract(epoch FROM mail.now() - max(l.buried_at))::float8 AS last_s,
       (array_agg(l.reason ORDER BY l.buried_at DESC))[1] AS reason,
       (array_agg(l.delivery_id ORDER BY l.buried_at DESC))[1] AS example
FROM (SELECT * FROM mail.dead_letters
      WHERE buried_at >= mail.now() - $1::float8 * interval '1 second'
      ORDER BY buried_at DESC LIMIT $2::int) AS l
JOIN mail.deliveries d ON d.id = l.delivery_id
LEFT JOIN mail.attempts a ON (a.delivery_id, a.number) = (d.id, d.attempts)
GROUP BY 1, 2, 3, 4, 5
ORDER BY count DESC
LIMIT 500
