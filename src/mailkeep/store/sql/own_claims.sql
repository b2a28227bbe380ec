-- Claims of replica $1 older than $2 seconds: what it holds in the table, to be compared with what it holds in memory.
SELECT id, claim_token FROM mail.deliveries
WHERE status = 'sending' AND claimed_by = $1::uuid AND claimed_at < mail.now() - $2::float8 * interval '1 second'
