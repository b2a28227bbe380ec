-- The dialogs of the newest $2 attempts that ended in the last $1 seconds, for how long each phase takes. By the primary key.
SELECT next_hop, status, phase, steps
FROM mail.attempts
WHERE delivery_id >= mail.uuid_floor(mail.now() - $1::float8 * interval '1 second') AND steps IS NOT NULL
ORDER BY delivery_id DESC, number DESC
LIMIT $2::int
