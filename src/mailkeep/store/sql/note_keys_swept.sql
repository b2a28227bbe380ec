-- Note that all idempotency keys were looked at today.
UPDATE mail.deployment SET keys_swept_on = (mail.now() AT TIME ZONE 'UTC')::date
