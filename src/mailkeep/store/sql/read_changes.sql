-- Read the last $2 changes by hand of delivery $1, the newest first.
SELECT verb, status, actor, reason, changed_at
FROM mail.operator_changes
WHERE delivery_id = $1::uuid
ORDER BY id DESC
LIMIT $2::int
