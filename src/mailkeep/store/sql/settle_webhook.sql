-- Record what became of a round of webhook $1, if replica $2 still tells it: its cursor ($3, $4), how many were told ($5) and
-- which of them again ($6), why none was ($7), whether it is gone for good ($8), and what failed: each event ($9 to $11), its
-- tries ($12), the wait in seconds until the next ($13; null: given up), and why ($14). No row where the replica was replaced.
WITH held AS (
    UPDATE mail.webhooks
    SET position = $3::bigint, event_id = $4::bigint, told = told + $5::int,
        told_at = CASE WHEN $5 > 0 THEN mail.now() ELSE told_at END,
        problem = CASE WHEN $5 > 0 THEN NULL ELSE coalesce($7::text, problem) END,
        disabled_at = CASE WHEN $8::bool THEN mail.now() END
    WHERE name = $1::text AND held_by = $2::uuid
    RETURNING name
), told AS (
    DELETE FROM mail.webhook_retries r USING held WHERE r.webhook = held.name AND r.event_id = ANY ($6::bigint[])
), failed AS (
    INSERT INTO mail.webhook_retries (webhook, event_id, position, delivery_id, tries, due_at, problem)
    SELECT held.name, f.event_id, f.position, f.delivery_id, f.tries, mail.now() + f.wait_s * interval '1 second', f.problem
    FROM held, unnest($9::bigint[], $10::bigint[], $11::uuid[], $12::smallint[], $13::float8[], $14::text[])
        AS f(event_id, position, delivery_id, tries, wait_s, problem)
    ORDER BY f.event_id
    ON CONFLICT (webhook, event_id) DO UPDATE
    SET tries = excluded.tries, due_at = excluded.due_at, problem = excluded.problem, failed_at = excluded.failed_at
)
SELECT name FROM held
