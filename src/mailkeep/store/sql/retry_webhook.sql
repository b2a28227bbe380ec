-- Tell webhook $1 again, now, all that failed, given up or not.
UPDATE mail.webhook_retries SET due_at = mail.now(), tries = 0 WHERE webhook = $1::text RETURNING event_id
