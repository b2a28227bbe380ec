-- Read one page of deliveries, newest id first, with id in [$2, $3). $1 names the way in, each by an index of its own:
-- 'id' (primary key), 'recipient' ($4 by recipients' primary key), 'waiting', 'sending', 'held' (partial indexes),
-- 'dead_letter' (primary key of dead_letters). At most $5 candidates are looked at, so that a filter nothing matches
-- costs no more than that; `horizon` is the oldest of them. OFFSET 0 keeps the planner from walking the primary key, past
-- all that has ended, for the few that are live. Takes no lock. Answers at least one row; without a match its id is null.
WITH candidate AS MATERIALIZED (
    (SELECT id FROM mail.deliveries
     WHERE $1::text = 'id' AND id >= $2::uuid AND id < $3::uuid
     ORDER BY id DESC LIMIT $5::int)
    UNION ALL
    (SELECT delivery_id FROM mail.recipients
     WHERE $1 = 'recipient' AND address_hash = $4::bytea AND addressed AND delivery_id >= $2 AND delivery_id < $3
     ORDER BY delivery_id DESC LIMIT $5)
    UNION ALL
    (SELECT id FROM (SELECT id FROM mail.deliveries WHERE $1 = 'waiting' AND status IN ('queued', 'rendered') OFFSET 0) AS live
     WHERE id >= $2 AND id < $3
     ORDER BY id DESC LIMIT $5)
    UNION ALL
    (SELECT id FROM (SELECT id FROM mail.deliveries WHERE $1 = 'sending' AND status = 'sending' OFFSET 0) AS live
     WHERE id >= $2 AND id < $3
     ORDER BY id DESC LIMIT $5)
    UNION ALL
    (SELECT id FROM mail.deliveries
     WHERE $1 = 'held' AND status = 'held' AND id >= $2 AND id < $3
     ORDER BY id DESC LIMIT $5)
    UNION ALL
    (SELECT delivery_id FROM mail.dead_letters
     WHERE $1 = 'dead_letter' AND delivery_id >= $2 AND delivery_id < $3
     ORDER BY delivery_id DESC LIMIT $5)
), page AS MATERIALIZED (
    SELECT d.*
    FROM candidate c JOIN mail.deliveries d USING (id)
    WHERE ($6::text[] IS NULL OR d.status = ANY ($6))
      AND ($7::text IS NULL OR d.source = $7)
      AND ($8::text IS NULL OR d.class = $8)
      AND ($9::text IS NULL OR d.template_id = $9)
      AND ($10::text IS NULL OR d.last_rule = $10)
    ORDER BY d.id DESC
    LIMIT $11::int
)
SELECT (SELECT count(*) FROM candidate) AS scanned, (SELECT id FROM candidate ORDER BY id LIMIT 1) AS horizon,
       d.*, p.recipients, l.cause, l.reason AS burial_reason, l.buried_at
FROM (VALUES (true)) AS once
LEFT JOIN page d ON true
LEFT JOIN mail.payloads p ON p.delivery_id = d.id
LEFT JOIN mail.dead_letters l ON l.delivery_id = d.id
ORDER BY d.id DESC
