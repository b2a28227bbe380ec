-- Delete up to $2 records of changes by hand that are older than $1 seconds; by the primary key, whose ids are made in order.
DELETE FROM mail.operator_changes
WHERE id IN (SELECT id FROM mail.operator_changes
             WHERE id < mail.uuid_floor(mail.now() - $1::float8 * interval '1 second') ORDER BY id LIMIT $2::int)
RETURNING id
