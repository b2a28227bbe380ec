-- What became of deliveries accepted in the last $1 seconds, the newest $2 of them, by status, next hop, source, class, rule and
-- what left a recipient out. By the primary key.
SELECT status, next_hop, source, class, last_rule AS rule,
       split_part((array_remove(suppressed_because, NULL))[1], ':', 1) AS listed, attempts > 0 AS tried,
       count(*)::int AS count, (array_agg(id ORDER BY id DESC))[1] AS example,
       (array_agg(last_reason ORDER BY id DESC))[1] AS reason,
       (count(*) FILTER (WHERE accepted_at > mail.now() - interval '1 minute'))::int AS last_minute
FROM (SELECT id, status, next_hop, source, class, last_rule, last_reason, suppressed_because, attempts, accepted_at
      FROM mail.deliveries
      WHERE id >= mail.uuid_floor(mail.now() - $1::float8 * interval '1 second')
      ORDER BY id DESC LIMIT $2::int) AS newest
GROUP BY 1, 2, 3, 4, 5, 6, 7
ORDER BY count DESC
LIMIT 500
