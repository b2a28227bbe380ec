-- Make a replica known; answers the database's clock.
INSERT INTO mail.replicas (id, host, pid, version) VALUES ($1, $2, $3, $4) RETURNING last_seen_at
