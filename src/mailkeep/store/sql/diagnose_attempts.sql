-- Attempts that ended in the last $1 seconds, of the newest $2 and of the last ones of $2 older deliveries that wait, grouped
-- by how they ended. By the primary keys and deliveries_due.
WITH floor AS MATERIALIZED (
    SELECT mail.uuid_floor(mail.now() - $1::float8 * interval '1 second') AS id, mail.now() - $1 * interval '1 second' AS instant
), older AS MATERIALIZED (
    SELECT id, attempts FROM mail.deliveries
    WHERE status IN ('queued', 'rendered') AND attempts > 0 AND id < (SELECT id FROM floor)
    LIMIT $2::int
), sample AS (
    (SELECT a.* FROM mail.attempts a
     WHERE a.delivery_id >= (SELECT id FROM floor)
     ORDER BY a.delivery_id DESC, a.number DESC LIMIT $2)
    UNION ALL
    SELECT a.* FROM older o JOIN mail.attempts a ON (a.delivery_id, a.number) = (o.id, o.attempts)
)
SELECT next_hop, status, phase, severity, scope, rule, count(*)::int AS count,
       extract(epoch FROM mail.now() - max(finished_at))::float8 AS last_s,
       avg(extract(epoch FROM finished_at - started_at))::float8 AS mean_s,
       (array_agg(coalesce(nullif(concat_ws(' ', code, enhanced, reply), ''), status) ORDER BY finished_at DESC))[1] AS reply,
       (array_agg(delivery_id ORDER BY finished_at DESC))[1] AS example
FROM sample
WHERE finished_at >= (SELECT instant FROM floor)
GROUP BY 1, 2, 3, 4, 5, 6
ORDER BY count DESC
LIMIT 500
