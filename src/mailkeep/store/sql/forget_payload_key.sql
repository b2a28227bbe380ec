-- Forget the key $1, which nothing is sealed by any more.
DELETE FROM mail.payload_keys WHERE name = $1 RETURNING name
