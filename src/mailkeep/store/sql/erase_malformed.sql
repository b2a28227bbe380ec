-- Erase what malformed commands $1 said: none of their fields is left ($2: raw fields that are none), and nothing to replay.
UPDATE mail.malformed_commands
SET raw = $2::bytea, cut = true, delivery_id = NULL, source = NULL, field = '', message = 'erased on request',
    replay_refusal = CASE WHEN replay_refusal IS NOT NULL THEN 'erased on request' END
WHERE id = ANY ($1::uuid[])
RETURNING id
