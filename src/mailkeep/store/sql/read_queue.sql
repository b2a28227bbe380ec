-- Read up to $1 live deliveries, the one due longest first. Takes no lock.
-- The next hops are found by skipping through the index deliveries_due; under each (next hop, class) it gives the
-- oldest due. `sending` and `held` come from their own partial indexes and count from their claim or acceptance.
WITH RECURSIVE hop(name) AS (
    (SELECT next_hop FROM mail.deliveries WHERE status IN ('queued', 'rendered') ORDER BY next_hop LIMIT 1)
    UNION ALL
    SELECT (SELECT d.next_hop FROM mail.deliveries d
            WHERE d.status IN ('queued', 'rendered') AND d.next_hop > hop.name
            ORDER BY d.next_hop LIMIT 1)
    FROM hop WHERE hop.name IS NOT NULL
), live AS (
    SELECT w.id, w.at
    FROM hop CROSS JOIN unnest(ARRAY['auth', 'transactional', 'relay']) AS c(class)
    CROSS JOIN LATERAL (
        SELECT d.id, d.due_at AS at FROM mail.deliveries d
        WHERE d.next_hop = hop.name AND d.class = c.class AND d.status IN ('queued', 'rendered')
          AND ($2::text[] IS NULL OR d.status = ANY ($2))
          AND ($3::text IS NULL OR d.class = $3)
          AND ($4::text IS NULL OR d.next_hop = $4)
          AND ($5::text IS NULL OR d.recipient_domain = $5)
          AND ($6::text IS NULL OR d.last_rule = $6)
        ORDER BY d.due_at
        LIMIT $1::int
    ) w
    UNION ALL
    (SELECT d.id, d.claimed_at FROM mail.deliveries d
     WHERE d.status = 'sending'
       AND ($2 IS NULL OR d.status = ANY ($2))
       AND ($3 IS NULL OR d.class = $3)
       AND ($4 IS NULL OR d.next_hop = $4)
       AND ($5 IS NULL OR d.recipient_domain = $5)
       AND ($6 IS NULL OR d.last_rule = $6)
     ORDER BY d.claimed_at
     LIMIT $1)
    UNION ALL
    (SELECT d.id, d.accepted_at FROM mail.deliveries d
     WHERE d.status = 'held'
       AND ($2 IS NULL OR d.status = ANY ($2))
       AND ($3 IS NULL OR d.class = $3)
       AND ($4 IS NULL OR d.next_hop = $4)
       AND ($5 IS NULL OR d.recipient_domain = $5)
       AND ($6 IS NULL OR d.last_rule = $6)
     ORDER BY d.id
     LIMIT $1)
), oldest AS MATERIALIZED (
    SELECT id, at FROM live ORDER BY at, id LIMIT $1
)
SELECT d.*, p.recipients
FROM oldest o
JOIN mail.deliveries d ON d.id = o.id
LEFT JOIN mail.payloads p ON p.delivery_id = d.id
ORDER BY o.at, o.id
