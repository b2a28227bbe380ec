-- Who keeps vacuum from taking dead rows of this database away, at most $1, the oldest first, and how many transactions began since.
-- From catalogs alone. A backend does it by its snapshot (backend_xmin), or by its own number if it has written (backend_xid); vacuum
-- itself does not count. Others' clocks are hidden from a role without pg_read_all_stats: held_s is null then.
SELECT * FROM (
    SELECT CASE WHEN a.backend_type = 'walsender' THEN 'standby' ELSE 'backend' END AS kind, a.pid::text AS name,
           coalesce(a.application_name, '') AS application_name, a.state,
           -- A query that runs may have a snapshot of its own (READ COMMITTED); of one in an older transaction's this says too little.
           extract(epoch FROM clock_timestamp() - CASE WHEN a.backend_xid IS NULL AND a.state = 'active' THEN a.query_start
                                                       ELSE a.xact_start END)::float8 AS held_s,
           greatest(age(a.backend_xmin), age(a.backend_xid)) AS transactions
    FROM pg_stat_activity a
    WHERE (a.datname = current_database() OR a.backend_type = 'walsender') AND a.pid <> pg_backend_pid()
      AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid)
    UNION ALL
    SELECT 'prepared transaction', p.gid, '', NULL, extract(epoch FROM clock_timestamp() - p.prepared)::float8, age(p.transaction)
    FROM pg_prepared_xacts p
    WHERE p.database = current_database()
    UNION ALL
    SELECT 'replication slot', s.slot_name::text, '', CASE WHEN s.active THEN 'active' ELSE 'nobody reads it' END, NULL, age(s.xmin)
    FROM pg_replication_slots s
    WHERE s.wal_status IS DISTINCT FROM 'lost'
) AS holder
WHERE transactions IS NOT NULL
ORDER BY transactions DESC, held_s DESC NULLS LAST
LIMIT $1::int
