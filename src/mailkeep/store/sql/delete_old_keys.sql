-- Delete up to $2 idempotency keys reserved more than $1 seconds ago whose delivery is gone or ended that long ago.
WITH old AS (
    SELECT k.source, k.key FROM mail.idempotency_keys k LEFT JOIN mail.deliveries d ON d.id = k.delivery_id
    WHERE k.reserved_at < mail.now() - $1::float8 * interval '1 second'
      AND (d.id IS NULL OR d.finished_at < mail.now() - $1 * interval '1 second')
    LIMIT $2::int
)
DELETE FROM mail.idempotency_keys k USING old WHERE k.source = old.source AND k.key = old.key RETURNING k.delivery_id
