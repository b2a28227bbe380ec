-- Look up the holders of idempotency keys, for a replay, a conflict, or a commit whose outcome was lost.
-- The lock makes this a commit of its own: what is answered has then reached the synchronous standbys, also where the commit
-- that stored it was cut while it still waited for them.
SELECT k.source, k.key, k.fingerprint, k.delivery_id, k.first_status
FROM unnest($1::text[], $2::text[]) AS wanted(source, key)
JOIN mail.idempotency_keys k USING (source, key)
ORDER BY k.source, k.key
FOR SHARE OF k
