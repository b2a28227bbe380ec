-- Put newly sealed raw fields ($2) in the place of those that were read ($3) of malformed commands $1.
UPDATE mail.malformed_commands m SET raw = i.raw
FROM unnest($1::uuid[], $2::bytea[], $3::bytea[]) AS i(id, raw, old_raw)
WHERE m.id = i.id AND m.raw = i.old_raw
RETURNING m.id
