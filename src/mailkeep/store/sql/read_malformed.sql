-- Malformed commands, newest first, before the id $1, of failure code $2 and source $3 where given; at most $4.
SELECT m.id, m.intake, m.entry_id, m.failure_code, m.field, m.message, m.delivery_id, m.source, m.raw, m.cut,
       m.rejected_at, m.replayed_at, m.replayed_as, m.replay_refusal, e.id IS NOT NULL AS replay_waits
FROM mail.malformed_commands m LEFT JOIN mail.enqueued e ON e.replay_of = m.id
WHERE ($1::uuid IS NULL OR m.id < $1) AND ($2::text IS NULL OR m.failure_code = $2) AND ($3::text IS NULL OR m.source = $3)
ORDER BY m.id DESC
LIMIT $4::int
