-- Forget replicas that left or were lost a day ago and hold no claim.
DELETE FROM mail.replicas r
WHERE coalesce(r.stopped_at, r.lost_at) < mail.now() - interval '1 day'
  AND NOT EXISTS (SELECT FROM mail.deliveries d WHERE d.claimed_by = r.id AND d.status = 'sending')
RETURNING r.id
