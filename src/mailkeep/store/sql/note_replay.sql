-- Note what came of a replay: malformed command $1 is delivery $2 now, or was refused again for $3.
UPDATE mail.malformed_commands SET replayed_at = mail.now(), replayed_as = $2::uuid, replay_refusal = $3::text
WHERE id = $1::uuid
