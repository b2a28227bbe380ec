-- Commands of mail.enqueue that nobody has taken yet, at most $1 counted, and the id (a UUIDv7) of the first of them.
SELECT count(*)::int AS waiting, (array_agg(id ORDER BY id))[1] AS first_id,
       extract(epoch FROM mail.now())::float8 AS now_s
FROM (SELECT id FROM mail.enqueued WHERE taken_at IS NULL ORDER BY id LIMIT $1::int) AS first
