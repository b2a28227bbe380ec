-- Count up to $2 retries of webhook $1 that are not given up.
SELECT count(*) AS waiting
FROM (SELECT FROM mail.webhook_retries WHERE webhook = $1::text AND due_at IS NOT NULL LIMIT $2::int) AS waiting
