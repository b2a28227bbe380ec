-- Note that a malformed command was taken after all, as delivery $2.
UPDATE mail.malformed_commands SET replayed_at = mail.now(), replayed_as = $2::uuid WHERE id = $1::uuid
