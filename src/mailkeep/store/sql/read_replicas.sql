-- Read up to $1 replicas, the newest first, with the seconds since each was heard of. By the primary key.
SELECT id, host, pid, version, started_at, last_seen_at, in_flight, stopped_at, lost_at, hops_out, totals,
       extract(epoch FROM mail.now() - last_seen_at)::float8 AS silent_s
FROM mail.replicas
ORDER BY id DESC
LIMIT $1::int
