-- Take one address off the suppression list, by its hash ($1) or the suppression's id ($2), and record who ($3) and why ($4).
WITH removed AS (
    DELETE FROM mail.suppressions WHERE address_hash = $1::bytea OR id = $2::uuid 
    RETURNING id, address_hash, address, reason, evidence, rule, delivery_id, attempt, actor, created_at, expires_at
), recorded AS (
    INSERT INTO mail.operator_changes (address_hash, verb, actor, reason)
    SELECT address_hash, 'unsuppress', $3::text, $4::text FROM removed
)
SELECT id AS suppression_id, address, reason, evidence, rule, delivery_id, attempt, actor, created_at, expires_at FROM removed
