-- By `has_ended` whether day $1 is over and each of its deliveries ended more than $2 seconds ago; by `has_old` whether any can
-- have: none ends before its id's instant, which may lie up to $3 seconds ahead. What has none is not read, row by row, for nothing.
-- Read from indexes, a row of each: those of what lives, and that of events, the last of which tells of the last end (but for as long as
-- a transaction takes). Only a day from before there were events is read whole. The bounds of ids stand for the day (see store/queries.py).
WITH bound AS MATERIALIZED (
    SELECT mail.now() - $2::float8 * interval '1 second' AS old,
           to_date($1::text, 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC' AS begin,
           (to_date($1, 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' AS end
), last_event AS (
    SELECT occurred_at FROM mail.events
    WHERE delivery_id BETWEEN '00000000-0000-0000-0000-000000000000' AND 'ffffffff-ffff-ffff-ffff-ffffffffffff'
    ORDER BY position DESC, id DESC
    LIMIT 1
)
SELECT CASE
           WHEN b.end >= b.old THEN false
           WHEN EXISTS (SELECT FROM mail.deliveries WHERE status IN ('queued', 'rendered') AND id BETWEEN '00000000-0000-0000-0000-000000000000' AND 'ffffffff-ffff-ffff-ffff-ffffffffffff') THEN false
           WHEN EXISTS (SELECT FROM mail.deliveries WHERE status = 'sending' AND id BETWEEN '00000000-0000-0000-0000-000000000000' AND 'ffffffff-ffff-ffff-ffff-ffffffffffff') THEN false
           WHEN EXISTS (SELECT FROM mail.deliveries WHERE status = 'held' AND id BETWEEN '00000000-0000-0000-0000-000000000000' AND 'ffffffff-ffff-ffff-ffff-ffffffffffff') THEN false
           WHEN EXISTS (SELECT FROM last_event) THEN (SELECT occurred_at FROM last_event) < b.old
           ELSE NOT EXISTS (SELECT FROM mail.deliveries WHERE finished_at >= b.old AND id BETWEEN '00000000-0000-0000-0000-000000000000' AND 'ffffffff-ffff-ffff-ffff-ffffffffffff')
       END AS has_ended,
       b.begin - $3::float8 * interval '1 second' < b.old AS has_old
FROM bound b
