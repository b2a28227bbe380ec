-- Count live deliveries by $1 ('domain' of the first recipient, 'next_hop' or 'class') and by age since acceptance: in
-- minutes, the upper bounds of the columns $2. The $3 groups with the most, their count in all first.
WITH aged AS (
    SELECT CASE $1::text WHEN 'domain' THEN recipient_domain WHEN 'next_hop' THEN next_hop ELSE class END AS name,
           -- The clock is read once, and as float8: for a million rows both would be half of the time.
           width_bucket(date_part('epoch', (SELECT mail.now()) - accepted_at) / 60, $2::float8[]) AS bucket,
           count(*) AS count
    FROM mail.deliveries
    WHERE status IN ('queued', 'rendered') OR status = 'sending' OR status = 'held'
    GROUP BY 1, 2
), totals AS (
    SELECT name, sum(count)::bigint AS total FROM aged GROUP BY name ORDER BY total DESC, name LIMIT $3::int
)
SELECT t.name, t.total, array_agg(a.bucket ORDER BY a.bucket) AS buckets, array_agg(a.count ORDER BY a.bucket) AS counts,
       (SELECT sum(count)::bigint FROM aged) AS everything, (SELECT count(DISTINCT name) FROM aged) AS groups
FROM totals t JOIN aged a USING (name)
GROUP BY t.name, t.total
ORDER BY t.total DESC, t.name
