-- By `has_ended` whether day $1 is over and each of its deliveries ended more than $2 seconds ago; by `has_old` whether any can
-- have: none ends before its id's instant, which may lie up to $3 seconds ahead. What has none is not read, row by row, for nothing.
WITH bound AS MATERIALIZED (
    SELECT mail.now() - $2::float8 * interval '1 second' AS old,
           to_date($1::text, 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC' AS begin,
           (to_date($1, 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' AS end
)
SELECT b.end < b.old AND NOT EXISTS (
           SELECT FROM mail.deliveries
           WHERE id >= mail.uuid_floor(b.begin) AND id < mail.uuid_floor(b.end)
             AND (finished_at IS NULL OR finished_at >= b.old)) AS has_ended,
       b.begin - $3::float8 * interval '1 second' < b.old AS has_old
FROM bound b
