-- at_most_once: commit the intent to send the final dot for claims; sending -> sending, fenced.
-- A claim that was lost is missing in the answer, and its dot must not be sent.
-- The bounds of ids stand for their days (see store/queries.py). `= ANY` has them looked up one by one also by a plan that was made
-- while a day was new: planned for few rows, it would else read the whole day each time.
-- `IS TRUE` keeps the planner off deliveries_claimed, where it would read every claim of the replica, or of all.
UPDATE mail.deliveries d
SET dot_at = mail.now()
FROM unnest($1::uuid[], $2::uuid[], $3::int[]) AS i(replica_id, id, claim_token)
WHERE d.id BETWEEN '00000000-0000-0000-0000-000000000000' AND 'ffffffff-ffff-ffff-ffff-ffffffffffff'
  AND d.id = ANY ($2::uuid[])
  AND d.id = i.id AND (d.status = 'sending' AND d.claimed_by = i.replica_id) IS TRUE AND d.claim_token = i.claim_token
RETURNING d.id
