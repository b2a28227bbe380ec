-- What the server says of itself: whether it is a standby, its connections, whether the schema and the due index are there.
-- From catalogs alone: no table of the queue is touched.
SELECT pg_is_in_recovery() AS standby,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int AS connections,
       current_setting('max_connections')::int AS max_connections,
       to_regclass('mail.deliveries') IS NOT NULL AS has_schema,
       coalesce((SELECT i.indisvalid FROM pg_index i WHERE i.indexrelid = to_regclass('mail.deliveries_due')), false) AS has_due_index
