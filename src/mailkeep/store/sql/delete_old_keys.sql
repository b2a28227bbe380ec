-- Delete the idempotency keys in blocks $3 to $4 (exclusive) of their table that were reserved more than $1 seconds ago and whose
-- delivery is no longer kept. Each block is read once: from the oldest on, every batch would pass over all that are deleted.
-- What was born less than $2 seconds ago is kept still, so that nobody need look. Both bounds
-- are subqueries, to be computed once instead of for each key.
DELETE FROM mail.idempotency_keys k
WHERE k.ctid >= format('(%s,0)', $3::int)::tid AND k.ctid < format('(%s,0)', $4::int)::tid
  AND k.reserved_at < (SELECT mail.now() - $1::float8 * interval '1 second')
  AND k.delivery_id < (SELECT mail.uuid_floor(mail.now() - $2::float8 * interval '1 second'))
  AND NOT EXISTS (SELECT FROM mail.deliveries d WHERE d.id = k.delivery_id)
RETURNING k.delivery_id
