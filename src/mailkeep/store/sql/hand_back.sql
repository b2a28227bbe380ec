-- Give claims back untouched: nothing of them was sent (a mark made before the dot is void), no attempt is counted.
-- sending -> rendered (queued if not rendered yet), due now; fenced.
-- The bounds of ids stand for their days (see store/queries.py). `= ANY` has them looked up one by one also by a plan that was made
-- while a day was new: planned for few rows, it would else read the whole day each time.
-- `IS TRUE` keeps the planner off deliveries_claimed, where it would read every claim of the replica, or of all.
UPDATE mail.deliveries d
SET status = CASE WHEN EXISTS (SELECT FROM mail.payloads p WHERE p.delivery_id = d.id
                            AND p.delivery_id BETWEEN '00000000-0000-0000-0000-000000000000' AND 'ffffffff-ffff-ffff-ffff-ffffffffffff'
                            AND p.message IS NULL)
                  THEN 'queued' ELSE 'rendered' END,
    due_at = mail.now(), claimed_by = NULL, claimed_at = NULL, dot_at = NULL
FROM unnest($1::uuid[], $2::uuid[], $3::int[]) AS i(replica_id, id, claim_token)
WHERE d.id BETWEEN '00000000-0000-0000-0000-000000000000' AND 'ffffffff-ffff-ffff-ffff-ffffffffffff'
  AND d.id = ANY ($2::uuid[])
  AND d.id = i.id AND (d.status = 'sending' AND d.claimed_by = i.replica_id) IS TRUE AND d.claim_token = i.claim_token
RETURNING d.id
