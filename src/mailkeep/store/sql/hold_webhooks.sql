-- Of the webhooks $1 answer those that replica $2 tells: its own, and those whose replica is gone, which are its own now.
-- One of a replica that another takes at this moment is waited for, and left to it.
WITH taken AS (
    UPDATE mail.webhooks w SET held_by = $2::uuid
    WHERE w.name = ANY ($1::text[]) AND w.held_by IS DISTINCT FROM $2
      AND NOT EXISTS (SELECT FROM mail.replicas r WHERE r.id = w.held_by AND r.lost_at IS NULL AND r.stopped_at IS NULL)
    RETURNING w.name, w.position, w.event_id, w.disabled_at
)
SELECT name, position, event_id FROM taken WHERE disabled_at IS NULL
UNION ALL
SELECT name, position, event_id FROM mail.webhooks
WHERE name = ANY ($1) AND held_by = $2 AND disabled_at IS NULL
