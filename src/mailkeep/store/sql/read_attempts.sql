-- Read the last $2 attempts of delivery $1, the newest first. Takes no lock; by the primary key.
SELECT number, status, certainty, phase, severity, scope, rule, next_hop, code, enhanced, reply, replica_id,
       started_at, finished_at, recipients, steps
FROM mail.attempts
WHERE delivery_id = $1::uuid
ORDER BY number DESC
LIMIT $2::int
