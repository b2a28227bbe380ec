-- Record a batch of finished attempts and move their deliveries on, in one commit.
-- sending -> what the caller decided; -> expired where the wait would end past expires_at. Each row is fenced by
-- (replica, claim token): a claim that was lost changes nothing and is missing in the answer.
-- Hard bounces ($24) make suppressions that last $25 seconds; one made by hand stays until it expires.
-- The bounds of ids stand for their days (see store/queries.py). `= ANY` has them looked up one by one also by a plan that was made
-- while a day was new: planned for few rows, it would else read the whole day each time.
-- Columns come as one text each (see store/columns.py); \x1e stands for NULL.
-- `IS TRUE` keeps the planner off deliveries_claimed, where it would read every claim of the replica, or of all.
WITH input AS (
    SELECT *
    FROM unnest(
        string_to_array($1, E'\x1f', E'\x1e')::uuid[],
        string_to_array($2, E'\x1f', E'\x1e')::uuid[],
        string_to_array($3, E'\x1f', E'\x1e')::int[],
        string_to_array($4, E'\x1f', E'\x1e'),
        string_to_array($5, E'\x1f', E'\x1e'),
        string_to_array($6, E'\x1f', E'\x1e')::float8[],
        string_to_array($7, E'\x1f', E'\x1e')::bool[],
        string_to_array($8, E'\x1f', E'\x1e'),
        string_to_array($9, E'\x1f', E'\x1e'),
        string_to_array($10, E'\x1f', E'\x1e'),
        string_to_array($11, E'\x1f', E'\x1e'),
        string_to_array($12, E'\x1f', E'\x1e'),
        string_to_array($13, E'\x1f', E'\x1e'),
        string_to_array($14, E'\x1f', E'\x1e'),
        string_to_array($15, E'\x1f', E'\x1e')::smallint[],
        string_to_array($16, E'\x1f', E'\x1e'),
        string_to_array($17, E'\x1f', E'\x1e'),
        string_to_array($18, E'\x1f', E'\x1e')::float8[],
        string_to_array($19, E'\x1f', E'\x1e')::jsonb[],
        string_to_array($20, E'\x1f', E'\x1e')::jsonb[],
        string_to_array($21, E'\x1f', E'\x1e')
    ) AS t(replica_id, id, claim_token, status, recipient_states, wait_s, uses_rung, cause, attempt_status,
           certainty, phase, severity, scope, rule, code, enhanced, reply, duration_ms,
           recipients, steps, reason)
), rendered AS (
    SELECT * FROM unnest($22::uuid[], $23::bytea[]) AS t(id, message)
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
        last_reason = CASE WHEN i.severity = 'success' THEN d.last_reason ELSE i.reason END,
        last_rule = i.rule
    FROM input i
    WHERE d.id BETWEEN '00000000-0000-0000-0000-000000000000' AND 'ffffffff-ffff-ffff-ffff-ffffffffffff'
      AND d.id = ANY (string_to_array($2, E'\x1f')::uuid[])
      AND d.id = i.id AND (d.status = 'sending' AND d.claimed_by = i.replica_id) IS TRUE AND d.claim_token = i.claim_token
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
), suppressed AS (
    -- In the order of the hashes, so that two batches about the same addresses cannot deadlock.
    INSERT INTO mail.suppressions AS s (
        address_hash, address, reason, evidence, rule, delivery_id, attempt, expires_at)
    SELECT DISTINCT ON (address_hash)
           decode(b.address_hash, 'hex') AS address_hash, b.address, 'hard_bounce', b.evidence, b.rule, m.id, m.attempts,
           mail.now() + $25::float8 * interval '1 second'
    FROM jsonb_to_recordset($24::jsonb) AS b(id uuid, address_hash text, address text, evidence text, rule text)
    JOIN moved m USING (id)
    ORDER BY address_hash
    ON CONFLICT (address_hash) DO UPDATE
    SET address = excluded.address, reason = excluded.reason, evidence = excluded.evidence, rule = excluded.rule,
        delivery_id = excluded.delivery_id, attempt = excluded.attempt, actor = NULL, expires_at = excluded.expires_at,
        created_at = CASE WHEN s.expires_at <= mail.now() THEN mail.now() ELSE s.created_at END
    WHERE s.expires_at <= mail.now() OR (s.actor IS NULL AND s.expires_at < excluded.expires_at)
), fixed AS (
    -- A delivery that was still to be rendered: its bytes are fixed now.
    UPDATE mail.payloads p SET message = i.message, command = NULL
    FROM moved m JOIN rendered i USING (id)
    WHERE p.delivery_id BETWEEN '00000000-0000-0000-0000-000000000000' AND 'ffffffff-ffff-ffff-ffff-ffffffffffff'
      AND p.delivery_id = ANY (ARRAY(SELECT id FROM rendered)) AND p.delivery_id = m.id
      AND NOT (m.sensitive AND m.status NOT IN ('rendered', 'held'))
), erased AS (
    DELETE FROM mail.payloads p
    WHERE p.delivery_id BETWEEN '00000000-0000-0000-0000-000000000000' AND 'ffffffff-ffff-ffff-ffff-ffffffffffff'
      AND p.delivery_id = ANY (ARRAY(SELECT id FROM moved WHERE sensitive AND status NOT IN ('rendered', 'held')))
)
SELECT id, status FROM moved
