-- Delete up to $3 payloads of day $1 behind the id $4 whose delivery ended more than $2 seconds ago, or is gone.
WITH old AS (
    SELECT p.delivery_id FROM mail.payloads p LEFT JOIN mail.deliveries d ON d.id = p.delivery_id
    WHERE p.delivery_id >= mail.uuid_floor(to_date($1::text, 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC')
      AND p.delivery_id < mail.uuid_floor((to_date($1, 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC')
      AND (d.id IS NULL OR d.finished_at < (SELECT mail.now() - $2::float8 * interval '1 second'))
      AND p.delivery_id > $4::uuid
    ORDER BY p.delivery_id LIMIT $3::int
)
DELETE FROM mail.payloads p USING old WHERE p.delivery_id = old.delivery_id RETURNING p.delivery_id AS id
