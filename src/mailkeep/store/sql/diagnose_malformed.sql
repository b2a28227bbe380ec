-- Commands rejected in the last $1 seconds and not replayed since, the newest $2, by producer, failure and field, with the raw
-- fields of one of each where they are small ($3 bytes). By the primary key.
SELECT intake, source, failure_code, field, (array_agg(message ORDER BY id DESC))[1] AS message, count(*)::int AS count,
       extract(epoch FROM mail.now() - max(rejected_at))::float8 AS last_s,
       (array_agg(raw ORDER BY id DESC) FILTER (WHERE octet_length(raw) <= $3::int AND NOT cut))[1] AS raw
FROM (SELECT id, intake, source, failure_code, field, message, rejected_at, raw, cut
      FROM mail.malformed_commands
      WHERE id >= mail.uuid_floor(mail.now() - $1::float8 * interval '1 second') AND replayed_as IS NULL
      ORDER BY id DESC LIMIT $2::int) AS newest
GROUP BY 1, 2, 3, 4
ORDER BY count DESC
LIMIT 100
