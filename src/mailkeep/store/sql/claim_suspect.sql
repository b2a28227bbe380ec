-- Claim for replica $1 one due row that was taken over twice or more: what may kill a replica is sent alone.
-- waiting -> sending; locks one row with SKIP LOCKED through the index
-- deliveries_suspect, whose condition is why the number stands here (core.queue.SUSPECT_TAKEOVERS).
WITH due AS (
    SELECT id
    FROM mail.deliveries
    WHERE next_hop = ANY ($2::text[]) AND status IN ('queued', 'rendered')
      AND due_at <= mail.now() AND takeovers >= 2
      AND (expires_at IS NULL OR expires_at > mail.now())
    ORDER BY due_at
    LIMIT 1
    FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE mail.deliveries d
    SET status = 'sending', claimed_by = $1::uuid, claimed_at = mail.now(), claim_token = d.claim_token + 1, due_at = NULL
    FROM due
    WHERE d.id = due.id AND d.status IN ('queued', 'rendered')
    RETURNING d.*
)
SELECT c.id, c.status, c.class, c.guarantee, c.next_hop, c.claim_token, c.attempts, c.rungs_used,
       c.recipient_states, c.size_bytes, c.accepted_at, c.expires_at, c.sensitive, c.source, c.traceparent,
       p.sender, p.recipients, p.command,
       CASE WHEN c.size_bytes <= $3::int THEN p.message END AS message
FROM claimed c
LEFT JOIN mail.payloads p ON p.delivery_id = c.id
