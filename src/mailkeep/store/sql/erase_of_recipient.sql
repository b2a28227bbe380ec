-- Erase what up to $2 deliveries that have ended keep of the address with the hash $1, their recipient's or one that their
-- content names, and by what they are found under it: content and addresses, the words of mail servers, of dead letters and of
-- people, and what is owed to a sender. What happened, and when, stays. One whose bounce is being made is left for the next run.
WITH chosen AS (
    SELECT d.id
    FROM mail.recipients r JOIN mail.deliveries d ON d.id = r.delivery_id
    WHERE r.address_hash = $1::bytea AND d.finished_at IS NOT NULL
      AND NOT EXISTS (SELECT FROM mail.bounces_owed o
                      WHERE o.delivery_id = d.id AND o.taken_at >= mail.now() - $3::float8 * interval '1 second')
    ORDER BY d.id
    LIMIT $2::int
    FOR UPDATE OF d
), deliveries AS (
    UPDATE mail.deliveries d
    SET last_reason = CASE WHEN d.last_reason IS NOT NULL THEN 'erased on request' END, suppressed_because = NULL,
        supersede_hash = NULL, recipient_domain = 'erased.invalid', idempotency_key = NULL
    FROM chosen c WHERE d.id = c.id
    RETURNING d.id
), payloads AS (
    DELETE FROM mail.payloads p USING chosen c WHERE p.delivery_id = c.id RETURNING p.delivery_id
), attempts AS (
    UPDATE mail.attempts a SET reply = NULL, recipients = NULL, steps = NULL
    FROM chosen c WHERE a.delivery_id = c.id RETURNING a.delivery_id
), dead_letters AS (
    UPDATE mail.dead_letters l SET reason = 'erased on request'
    FROM chosen c WHERE l.delivery_id = c.id RETURNING l.delivery_id
), notes AS (
    UPDATE mail.operator_changes o SET reason = 'erased on request'
    FROM chosen c WHERE o.delivery_id = c.id RETURNING o.id
), owed AS (
    DELETE FROM mail.bounces_owed o USING chosen c
    WHERE o.delivery_id = c.id AND (o.taken_at < mail.now() - $3 * interval '1 second') IS NOT FALSE
), unlinked AS (
    DELETE FROM mail.recipients r USING chosen c WHERE r.address_hash = $1 AND r.delivery_id = c.id
)
SELECT (SELECT count(*) FROM deliveries) AS deliveries, (SELECT count(*) FROM payloads) AS payloads,
       (SELECT count(*) FROM attempts) AS attempts, (SELECT count(*) FROM dead_letters) AS dead_letters,
       (SELECT count(*) FROM notes) AS notes
