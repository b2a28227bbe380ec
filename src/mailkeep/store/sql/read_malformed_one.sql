-- One malformed command by its id.
SELECT id, intake, entry_id, failure_code, field, message, delivery_id, source, raw, cut, rejected_at, replayed_at,
       replayed_as
FROM mail.malformed_commands WHERE id = $1::uuid
