-- Take up to $1 commands of the inbox; those another replica took more than $2 seconds ago are free again.
UPDATE mail.enqueued e SET taken_at = mail.now()
FROM (
    SELECT id FROM mail.enqueued
    WHERE taken_at IS NULL OR taken_at < mail.now() - $2::float8 * interval '1 second'
    ORDER BY id
    LIMIT $1::int
    FOR UPDATE SKIP LOCKED
) free
WHERE e.id = free.id
RETURNING e.id, e.command::text AS command
