-- Make a replica known; answers the database's clock and for how long its server has been up.
INSERT INTO mail.replicas (id, host, pid, version) VALUES ($1, $2, $3, $4)
RETURNING last_seen_at, extract(epoch FROM now() - pg_postmaster_start_time())::float8 AS up_s
