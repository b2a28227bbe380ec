-- Take over up to $1 claims of replicas that are lost or stopped; each gets the attempt `abandoned`.
-- sending -> rendered/queued due now (no rung used), -> held (at_most_once after its dot was committed),
-- -> dead_letter `poison` at the $2th takeover in a row, -> expired. Locks claims with SKIP LOCKED.
WITH orphaned AS (
    -- The verdict is over the row as it was locked, not as the statement's snapshot first saw it.
    SELECT d.id, d.claimed_by, d.claim_token, d.claimed_at, d.guarantee, d.dot_at, d.expires_at, d.takeovers
    -- An array, so that no plan reads the claims of those that live to find none of theirs.
    FROM mail.deliveries d
    WHERE d.status = 'sending'
      AND d.claimed_by = ANY (ARRAY(SELECT id FROM mail.replicas WHERE lost_at IS NOT NULL OR stopped_at IS NOT NULL))
    LIMIT $1::int
    FOR UPDATE OF d SKIP LOCKED
), verdict AS (
    SELECT o.id, o.claimed_by, o.claim_token, o.claimed_at,
           CASE WHEN o.guarantee = 'at_most_once' AND o.dot_at IS NOT NULL THEN 'held'
                WHEN o.expires_at <= mail.now() THEN 'expired'
                WHEN o.takeovers + 1 >= $2::int THEN 'dead_letter'
                WHEN EXISTS (SELECT FROM mail.payloads p WHERE p.delivery_id = o.id AND p.message IS NULL) THEN 'queued'
                ELSE 'rendered' END AS status
    FROM orphaned o
), moved AS (
    UPDATE mail.deliveries d
    SET status = v.status,
        due_at = CASE WHEN v.status IN ('queued', 'rendered') THEN mail.now() END,
        finished_at = CASE WHEN v.status IN ('expired', 'dead_letter') THEN mail.now() END,
        claimed_by = NULL, claimed_at = NULL,
        attempts = d.attempts + 1, takeovers = d.takeovers + 1,
        last_reason = 'its replica was lost', last_rule = 'replica_lost'
    FROM verdict v
    WHERE d.id = v.id AND d.status = 'sending' AND d.claim_token = v.claim_token
    RETURNING d.id, d.status, d.attempts, d.next_hop, d.sensitive, v.claimed_by, v.claim_token, v.claimed_at
), recorded AS (
    INSERT INTO mail.attempts (delivery_id, number, status, certainty, rule, next_hop, replica_id, claim_token,
                               started_at, finished_at)
    SELECT id, attempts, 'abandoned', 'unknown', 'replica_lost', next_hop, claimed_by, claim_token, claimed_at,
           mail.now()
    FROM moved
), buried AS (
    INSERT INTO mail.dead_letters (delivery_id, cause, reason)
    SELECT id, 'poison', 'taken over ' || $2::int || ' times without a recorded attempt'
    FROM moved WHERE status = 'dead_letter'
), erased AS (
    DELETE FROM mail.payloads p USING moved m
    WHERE p.delivery_id = m.id AND m.sensitive AND m.status IN ('expired', 'dead_letter')
)
SELECT id, status FROM moved
