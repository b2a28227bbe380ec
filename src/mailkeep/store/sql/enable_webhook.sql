-- Let webhook $1 go on from where it stopped; no row if it was not disabled.
UPDATE mail.webhooks SET disabled_at = NULL, problem = NULL WHERE name = $1::text AND disabled_at IS NOT NULL RETURNING name
