-- Note that key $1 is used in this hour, unless that is noted. By the primary key.
UPDATE mail.api_keys SET last_used_at = date_trunc('hour', mail.now())
WHERE id = $1::text AND (last_used_at >= date_trunc('hour', mail.now())) IS NOT TRUE
