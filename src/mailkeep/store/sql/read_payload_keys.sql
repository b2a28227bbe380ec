-- Read the keys that payloads of this database were sealed by.
SELECT name, mark, first_used_at FROM mail.payload_keys ORDER BY first_used_at, name
