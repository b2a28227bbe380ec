-- Note that payloads are sealed by the key $1 (with its mark $2) from now on.
INSERT INTO mail.payload_keys (name, mark) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING
