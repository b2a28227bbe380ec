-- Keep a new key: its id, name, the hash of its secret, the senders it may use; who makes it, and for how many seconds.
INSERT INTO mail.api_keys (id, name, secret_hash, senders, actor, expires_at)
VALUES ($1, $2, $3, $4, $5, mail.now() + $6::float8 * interval '1 second')
RETURNING id, name, senders, actor, created_at, expires_at, last_used_at, revoked_at, revoked_by
