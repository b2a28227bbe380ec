-- Take up to $1 commands of the inbox, or as many as have $3 bytes together; those another replica took more than $2
-- seconds ago are free again. A replay comes with the record it is of.
WITH free AS (
    SELECT id, replay_of, size_bytes FROM mail.enqueued
    WHERE taken_at IS NULL OR taken_at < mail.now() - $2::float8 * interval '1 second'
    ORDER BY id
    LIMIT $1::int
    FOR UPDATE SKIP LOCKED
), fitting AS (
    SELECT id, replay_of FROM (
        SELECT id, replay_of, sum(size_bytes) OVER (ORDER BY id) - size_bytes AS before FROM free
    ) summed WHERE before < $3::bigint
)
UPDATE mail.enqueued e SET taken_at = mail.now()
FROM fitting f LEFT JOIN mail.malformed_commands m ON m.id = f.replay_of
WHERE e.id = f.id
RETURNING e.id, e.command::text AS command, e.delivery_id, e.replay_of, m.intake, m.entry_id, m.raw
