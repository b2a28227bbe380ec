-- Erase the address $1 (lower case) from the keys that programs send with: from what they own and from their names. One that owns
-- nothing else is revoked, by $2. Reads the table whole.
UPDATE mail.api_keys
SET senders = CASE WHEN senders <@ ARRAY[$1::text] THEN ARRAY['erased@erased.invalid'] ELSE array_remove(senders, $1) END,
    name = CASE WHEN strpos(lower(name), $1) > 0 THEN 'erased ' || id ELSE name END,
    revoked_at = CASE WHEN senders <@ ARRAY[$1] THEN coalesce(revoked_at, mail.now()) ELSE revoked_at END,
    revoked_by = CASE WHEN senders <@ ARRAY[$1] THEN coalesce(revoked_by, $2::text) ELSE revoked_by END
WHERE $1 = ANY (senders) OR strpos(lower(name), $1) > 0
RETURNING id
