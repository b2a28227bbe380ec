-- Leave out of claimed deliveries whom the suppression list names by now; what it names nobody of is only read.
-- sending -> suppressed, or failed where another recipient was refused before, where nobody is left to send to; else it
-- stays sending. $1, $2, $3: replica, id and token of each claim, which fence it. $4, $5, $6: delivery, address hash and
-- state of each recipient in order. By the primary keys of suppressions and deliveries; the bounds of ids stand for
-- their days (see store/queries.py). `= ANY` has them looked up one by one also by a plan that was made while a day was new: planned
-- for few rows, it would else read the whole day each time. `IS TRUE` keeps the planner off deliveries_claimed, where it would read
-- every claim.
WITH claimed AS (
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int[]) AS t(replica_id, id, claim_token)
), recipient AS MATERIALIZED (
    SELECT * FROM unnest($4::uuid[], $5::bytea[], $6::text[]) WITH ORDINALITY AS t(id, address_hash, state, place)
), listed AS MATERIALIZED (
    SELECT r.id, r.place, s.reason || ': ' || s.evidence AS because
    FROM recipient r JOIN mail.suppressions s USING (address_hash)
    WHERE r.state = 'o' AND (s.expires_at IS NULL OR s.expires_at > mail.now())
), suppressed AS MATERIALIZED (
    SELECT r.id, string_agg(CASE WHEN l.place IS NULL THEN r.state ELSE 'x' END, '' ORDER BY r.place) AS recipient_states,
           array_agg(l.because ORDER BY r.place) AS because
    FROM recipient r LEFT JOIN listed l USING (place)
    WHERE r.id IN (SELECT id FROM listed)
    GROUP BY r.id
), moved AS (
    UPDATE mail.deliveries d
    SET status = CASE WHEN strpos(s.recipient_states, 'o') > 0 THEN 'sending'
                      WHEN strpos(s.recipient_states, 'f') > 0 THEN 'failed' ELSE 'suppressed' END,
        finished_at = CASE WHEN strpos(s.recipient_states, 'o') = 0 THEN mail.now() END,
        claimed_by = CASE WHEN strpos(s.recipient_states, 'o') > 0 THEN d.claimed_by END,
        claimed_at = CASE WHEN strpos(s.recipient_states, 'o') > 0 THEN d.claimed_at END,
        recipient_states = s.recipient_states,
        suppressed_because = ARRAY(
            SELECT coalesce(b.because, d.suppressed_because[b.place])
            FROM unnest(s.because) WITH ORDINALITY AS b(because, place) ORDER BY b.place),
        last_reason = 'on the suppression list, ' || (array_remove(s.because, NULL))[1],
        last_rule = 'suppression_list'
    FROM suppressed s JOIN claimed c USING (id)
    WHERE d.id BETWEEN '00000000-0000-0000-0000-000000000000' AND 'ffffffff-ffff-ffff-ffff-ffffffffffff'
      AND d.id = ANY ($2::uuid[])
      AND d.id = s.id AND (d.status = 'sending' AND d.claimed_by = c.replica_id) IS TRUE AND d.claim_token = c.claim_token
    RETURNING d.id, d.status, d.recipient_states, d.sensitive
), erased AS (
    DELETE FROM mail.payloads p
    WHERE p.delivery_id BETWEEN '00000000-0000-0000-0000-000000000000' AND 'ffffffff-ffff-ffff-ffff-ffffffffffff'
      AND p.delivery_id = ANY (ARRAY(SELECT id FROM moved WHERE sensitive AND status <> 'sending'))
)
SELECT id, status, recipient_states FROM moved
