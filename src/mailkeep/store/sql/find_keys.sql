-- Look up the holders of idempotency keys, for a replay, a conflict, or a commit whose outcome was lost.
SELECT k.source, k.key, k.fingerprint, k.delivery_id, k.first_status
FROM unnest($1::text[], $2::text[]) AS wanted(source, key)
JOIN mail.idempotency_keys k USING (source, key)
