-- Take up to $1 bounces that are owed, with what they tell: those another replica took more than $2 seconds ago are free
-- again. The first $3 bytes of a message stand for its header, and the last $4 attempts until then for all. sender is null
-- where the content is erased. Few rows are ever owed: read as they stand.
WITH free AS (
    SELECT id FROM mail.bounces_owed
    WHERE taken_at IS NULL OR taken_at < mail.now() - $2::float8 * interval '1 second'
    ORDER BY id
    LIMIT $1::int
    FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE mail.bounces_owed o SET taken_at = mail.now() FROM free WHERE o.id = free.id
    RETURNING o.id, o.delivery_id, o.failed, o.status, o.attempts
)
SELECT t.id, t.delivery_id, t.failed, t.status, d.accepted_at, d.suppressed_because, d.traceparent, p.sender, p.recipients,
       -- A sealed one opens as a whole only.
       CASE WHEN get_byte(p.message, 0) = 1 THEN p.message ELSE substring(p.message FROM 1 FOR $3::int) END AS head,
       (SELECT jsonb_agg(jsonb_build_object('finished_at', said.finished_at, 'outcome', said.outcome))
        FROM (SELECT DISTINCT ON (outcome ->> 'ordinal') a.finished_at, outcome
              FROM mail.attempts a CROSS JOIN LATERAL jsonb_array_elements(a.recipients) AS outcome
              WHERE a.delivery_id = t.delivery_id AND a.number <= t.attempts AND a.number > t.attempts - $4::int
              ORDER BY outcome ->> 'ordinal', a.number DESC) said)::text AS said
FROM taken t
LEFT JOIN mail.deliveries d ON d.id = t.delivery_id
LEFT JOIN mail.payloads p ON p.delivery_id = t.delivery_id
ORDER BY t.id
