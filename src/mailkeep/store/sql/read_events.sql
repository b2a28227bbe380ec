-- Read one page of events after ($1, $2), in the order of their transactions, by the index events_in_order; those with a
-- status in $3, if it is given. At most $4 are looked at and $5 answered; (last_position, last_id) is where the look ended.
-- Only what lies below the horizon: nothing can come in between later. Takes no lock. Answers at least one row; without a
-- match its id is null.
WITH candidate AS MATERIALIZED (
    SELECT delivery_id, id, position, status, attempts, rule, occurred_at
    FROM mail.events
    WHERE (position, id) > ($1::bigint, $2::bigint) AND position < (SELECT mail.event_horizon())
    ORDER BY position, id
    LIMIT $4::int
), page AS MATERIALIZED (
    SELECT e.*, d.source, d.class, d.template_id, d.parent_id, d.idempotency_key, d.accepted_at
    FROM candidate e JOIN mail.deliveries d ON d.id = e.delivery_id
    WHERE $3::text[] IS NULL OR e.status = ANY ($3)
    ORDER BY position, id
    LIMIT $5::int
), looked AS (
    SELECT count(*) AS scanned, (array_agg(position ORDER BY position DESC, id DESC))[1] AS last_position,
           (array_agg(id ORDER BY position DESC, id DESC))[1] AS last_id
    FROM candidate
)
SELECT k.scanned, k.last_position, k.last_id, p.*, l.cause
FROM looked k
LEFT JOIN page p ON true
LEFT JOIN mail.dead_letters l ON l.delivery_id = p.delivery_id AND p.status = 'dead_letter'
ORDER BY p.position, p.id
