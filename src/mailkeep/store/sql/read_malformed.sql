-- Malformed commands, newest first, before the id $1, of failure code $2 and source $3 where given; at most $4.
SELECT id, intake, entry_id, failure_code, field, message, delivery_id, source, raw, cut, rejected_at, replayed_at,
       replayed_as
FROM mail.malformed_commands
WHERE ($1::uuid IS NULL OR id < $1) AND ($2::text IS NULL OR failure_code = $2) AND ($3::text IS NULL OR source = $3)
ORDER BY id DESC
LIMIT $4::int
