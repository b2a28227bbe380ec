-- Erase what malformed commands $1 said: none of their fields is left ($2: raw fields that are none), and nothing to replay.
UPDATE mail.malformed_commands SET raw = $2::bytea, cut = true, delivery_id = NULL WHERE id = ANY ($1::uuid[]) RETURNING id
