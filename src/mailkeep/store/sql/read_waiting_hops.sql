-- Read the next hops that waiting deliveries have, by skipping through the index deliveries_due.
WITH RECURSIVE hop(name) AS (
    (SELECT next_hop FROM mail.deliveries WHERE status IN ('queued', 'rendered') ORDER BY next_hop LIMIT 1)
    UNION ALL
    SELECT (SELECT d.next_hop FROM mail.deliveries d
            WHERE d.status IN ('queued', 'rendered') AND d.next_hop > hop.name
            ORDER BY d.next_hop LIMIT 1)
    FROM hop WHERE hop.name IS NOT NULL
)
SELECT name FROM hop WHERE name IS NOT NULL
