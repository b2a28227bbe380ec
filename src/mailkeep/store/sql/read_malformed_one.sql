-- One malformed command by its id.
SELECT m.id, m.intake, m.entry_id, m.failure_code, m.field, m.message, m.delivery_id, m.source, m.raw, m.cut,
       m.rejected_at, m.replayed_at, m.replayed_as, m.replay_refusal, e.id IS NOT NULL AS replay_waits
FROM mail.malformed_commands m LEFT JOIN mail.enqueued e ON e.replay_of = m.id
WHERE m.id = $1::uuid
