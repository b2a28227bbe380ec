-- Record a batch of finished attempts and move their deliveries on, in one commit.
-- sending -> what the caller decided; -> expired where the wait would end past expires_at. Each row is fenced by
-- (replica, claim token): a claim that was lost changes nothing and is missing in the answer.
WITH input AS (
    SELECT *
    FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::text[], $5::text[], $6::float8[], $7::bool[], $8::text[], $9::text[],
                $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::smallint[], $16::text[],
                $17::text[], $18::float8[], $19::jsonb[], $20::jsonb[], $21::text[], $22::bytea[])
        AS t(replica_id, id, claim_token, status, recipient_states, wait_s, uses_rung, cause, attempt_status, certainty,
             phase, severity, scope, rule, code, enhanced, reply, duration_ms, recipients, steps, reason, message)
), moved AS (
    UPDATE mail.deliveries d
    SET status = CASE WHEN i.status = 'rendered' AND d.expires_at <= mail.now() + i.wait_s * interval '1 second'
                      THEN 'expired' ELSE i.status END,
        finished_at = CASE WHEN i.status IN ('held', 'queued') THEN NULL
                           WHEN i.status <> 'rendered'
                             OR d.expires_at <= mail.now() + i.wait_s * interval '1 second' THEN mail.now() END,
        due_at = CASE WHEN i.status = 'rendered'
                       AND (d.expires_at <= mail.now() + i.wait_s * interval '1 second') IS NOT TRUE
                      THEN mail.now() + i.wait_s * interval '1 second' END,
        claimed_by = NULL,
        claimed_at = NULL,
        dot_at = CASE WHEN i.status = 'held' THEN d.dot_at END,
        attempts = d.attempts + 1,
        rungs_used = d.rungs_used + i.uses_rung::int,
        takeovers = 0,
        recipient_states = i.recipient_states,
        last_reason = CASE WHEN i.status = 'sent' THEN d.last_reason ELSE i.reason END,
        last_rule = i.rule
    FROM input i
    WHERE d.id = i.id AND d.status = 'sending' AND d.claimed_by = i.replica_id AND d.claim_token = i.claim_token
    RETURNING d.id, d.status, d.attempts, d.next_hop, d.sensitive, d.claim_token
), recorded AS (
    INSERT INTO mail.attempts (
        delivery_id, number, status, certainty, phase, severity, scope, rule, next_hop, code, enhanced, reply,
        replica_id, claim_token, started_at, finished_at, recipients, steps)
    SELECT m.id, m.attempts, i.attempt_status, i.certainty, i.phase, i.severity, i.scope, i.rule, m.next_hop,
           i.code, i.enhanced, i.reply, i.replica_id, m.claim_token,
           mail.now() - i.duration_ms * interval '1 millisecond', mail.now(), i.recipients, i.steps
    FROM moved m JOIN input i USING (id)
), buried AS (
    INSERT INTO mail.dead_letters (delivery_id, cause, reason)
    SELECT m.id, i.cause, i.reason FROM moved m JOIN input i USING (id) WHERE m.status = 'dead_letter'
), fixed AS (
    -- A delivery that was still to be rendered: its bytes are fixed now.
    UPDATE mail.payloads p SET message = i.message, command = NULL
    FROM moved m JOIN input i USING (id)
    WHERE p.delivery_id = m.id AND i.message IS NOT NULL
      AND NOT (m.sensitive AND m.status NOT IN ('rendered', 'held'))
), erased AS (
    DELETE FROM mail.payloads p USING moved m
    WHERE p.delivery_id = m.id AND m.sensitive AND m.status NOT IN ('rendered', 'held')
)
SELECT id, status FROM moved
