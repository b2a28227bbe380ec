-- Read up to $2 malformed commands after the id $1 that are not sealed by the key $3.
SELECT id, raw FROM mail.malformed_commands
WHERE id > $1::uuid
  AND substr(raw, 1, 2 + octet_length($3::bytea)) <> '\x01'::bytea || set_byte('\x00'::bytea, 0, octet_length($3)) || $3
ORDER BY id
LIMIT $2::int
