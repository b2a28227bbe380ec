-- Read a page of dead letters to redrive, the oldest id first, after id $1: of cause $2, rule $3, domain $4, class $5, source
-- $6, buried from $7 until before $8; null lets all through. At most $9 are looked at and $10 answered. `recipients` is null
-- where the content is erased; `resent`: somebody did that already, by the index operator_changes_of_delivery. Takes no
-- lock. Answers at least one row; without a match its id is null.
WITH candidate AS MATERIALIZED (
    SELECT delivery_id AS id, cause, buried_at FROM mail.dead_letters WHERE delivery_id > $1::uuid
    ORDER BY delivery_id LIMIT $9::int
), page AS MATERIALIZED (
    SELECT c.id
    FROM candidate c JOIN mail.deliveries d USING (id)
    WHERE ($2::text IS NULL OR c.cause = $2)
      AND ($3::text IS NULL OR d.last_rule = $3)
      AND ($4::text IS NULL OR d.recipient_domain = $4)
      AND ($5::text IS NULL OR d.class = $5)
      AND ($6::text IS NULL OR d.source = $6)
      AND ($7::timestamptz IS NULL OR c.buried_at >= $7)
      AND ($8::timestamptz IS NULL OR c.buried_at < $8)
    ORDER BY c.id
    LIMIT $10::int
)
SELECT (SELECT count(*) FROM candidate) AS scanned, (SELECT id FROM candidate ORDER BY id DESC LIMIT 1) AS horizon,
       g.id, CASE WHEN p.message IS NOT NULL THEN p.recipients END AS recipients,
       EXISTS (SELECT FROM mail.operator_changes o WHERE o.delivery_id = g.id AND o.verb = 'resend') AS resent
FROM (VALUES (true)) AS once
LEFT JOIN page g ON true
LEFT JOIN mail.payloads p ON p.delivery_id = g.id
ORDER BY g.id
