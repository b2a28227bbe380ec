-- Delete up to $3 deliveries of day $1 behind the id $4 that ended more than $2 seconds ago, with all that belongs to them.
WITH old AS (
    SELECT id FROM mail.deliveries
    WHERE id >= mail.uuid_floor(to_date($1::text, 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC')
      AND id < mail.uuid_floor((to_date($1, 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC')
      AND finished_at < (SELECT mail.now() - $2::float8 * interval '1 second')
      AND id > $4::uuid
    ORDER BY id LIMIT $3::int
), payloads AS (
    DELETE FROM mail.payloads p USING old WHERE p.delivery_id = old.id
), attempts AS (
    DELETE FROM mail.attempts a USING old WHERE a.delivery_id = old.id
), recipients AS (
    DELETE FROM mail.recipients r USING old WHERE r.delivery_id = old.id
), dead_letters AS (
    DELETE FROM mail.dead_letters l USING old WHERE l.delivery_id = old.id
)
DELETE FROM mail.deliveries d USING old
WHERE d.id = old.id AND d.finished_at < mail.now() - $2 * interval '1 second'
RETURNING d.id
