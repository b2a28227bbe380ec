-- Delete up to $2 idempotency keys reserved more than $1 seconds ago whose delivery is no longer kept.
WITH old AS (
    SELECT k.source, k.key FROM mail.idempotency_keys k
    WHERE k.reserved_at < mail.now() - $1::float8 * interval '1 second'
      AND NOT EXISTS (SELECT FROM mail.deliveries d WHERE d.id = k.delivery_id)
    LIMIT $2::int
)
DELETE FROM mail.idempotency_keys k USING old WHERE k.source = old.source AND k.key = old.key RETURNING k.delivery_id
