-- Of the deliveries $2, those that were born claimed by replica $1 and still are: what a commit stored whose answer was lost.
-- By the primary key. recipient_states where the suppression list left somebody out, as `accept` answers.
SELECT id, CASE WHEN strpos(recipient_states, 'x') > 0 THEN recipient_states END AS recipient_states
FROM mail.deliveries
WHERE id = ANY ($2::uuid[]) AND status = 'sending' AND (claimed_by = $1::uuid) IS TRUE AND claim_token = 1
