-- Note what the erasure $1 erased ($2, counts by kind); one without counts was interrupted.
UPDATE mail.erasures SET erased = $2::jsonb, erased_at = mail.now() WHERE id = $1::uuid
