-- Transactions that hold a lock on tables of the queue, at most $1, the oldest first, with how many statements wait for each.
-- From catalogs alone. `strong`: the lock keeps even claims out; else it is one on rows.
SELECT a.pid, a.application_name, a.state, coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8 AS held_s,
       bool_or(l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')) AS strong,
       array_agg(DISTINCT c.relname::text) AS tables,
       (SELECT count(*) FROM pg_stat_activity w
        WHERE w.datname = current_database() AND w.wait_event_type = 'Lock' AND a.pid = ANY (pg_blocking_pids(w.pid)))::int AS waiting
FROM pg_locks l
JOIN pg_class c ON c.oid = l.relation AND c.relnamespace = to_regnamespace('mail') AND c.relkind IN ('r', 'p')
JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.mode IN ('RowShareLock', 'RowExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
  AND a.pid <> pg_backend_pid()
GROUP BY a.pid, a.application_name, a.state, a.xact_start
ORDER BY a.xact_start
LIMIT $1::int
