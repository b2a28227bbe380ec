-- Put the replay of malformed command $1 with the repairs $2 into the inbox and wake who takes it; nothing if the record
-- is cut, replayed, or in the inbox already.
WITH asked AS (
    INSERT INTO mail.enqueued (command, size_bytes, replay_of)
    SELECT $2::text::jsonb, octet_length(raw) + octet_length($2), id
    FROM mail.malformed_commands WHERE id = $1::uuid AND NOT cut AND replayed_as IS NULL
    ON CONFLICT (replay_of) DO NOTHING
    RETURNING id
)
SELECT id, pg_notify('mail_enqueued', '') FROM asked
