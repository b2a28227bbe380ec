-- Claim due rows for replica $1: up to `bound` rows for each (next hop, class), oldest first, and $7 in all.
-- waiting -> sending, or -> expired where its time ran out; locks with SKIP LOCKED through the index deliveries_due.
-- Rows taken over `suspect_takeovers` ($5) times or more are left to claim_suspect.
WITH wanted AS (
    SELECT * FROM unnest($2::text[], $3::text[], $4::int[]) AS t(next_hop, class, bound)
), due AS (
    SELECT d.id
    FROM wanted w
    CROSS JOIN LATERAL (
        SELECT id
        FROM mail.deliveries
        WHERE next_hop = w.next_hop AND class = w.class AND status IN ('queued', 'rendered')
          AND due_at <= mail.now() AND takeovers < $5::int
        ORDER BY due_at
        LIMIT w.bound
        FOR UPDATE SKIP LOCKED
    ) d
    LIMIT $7::int
), claimed AS (
    UPDATE mail.deliveries d
    SET status = CASE WHEN d.expires_at <= mail.now() THEN 'expired' ELSE 'sending' END,
        finished_at = CASE WHEN d.expires_at <= mail.now() THEN mail.now() END,
        claimed_by = CASE WHEN d.expires_at <= mail.now() THEN NULL ELSE $1::uuid END,
        claimed_at = CASE WHEN d.expires_at <= mail.now() THEN NULL ELSE mail.now() END,
        claim_token = d.claim_token + 1,
        due_at = NULL
    FROM due
    WHERE d.id = due.id AND d.status IN ('queued', 'rendered')
    RETURNING d.*
), erased AS (
    DELETE FROM mail.payloads p USING claimed c
    WHERE p.delivery_id = c.id AND c.status = 'expired' AND c.sensitive
)
SELECT c.id, c.status, c.class, c.guarantee, c.next_hop, c.claim_token, c.attempts, c.rungs_used,
       c.recipient_states, c.size_bytes, c.accepted_at, c.expires_at, c.sensitive, c.source, c.traceparent,
       p.sender, p.recipients, p.command,
       CASE WHEN c.size_bytes <= $6::int THEN p.message END AS message
FROM claimed c
LEFT JOIN mail.payloads p ON p.delivery_id = c.id
