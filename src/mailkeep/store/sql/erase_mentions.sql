-- Erase the address $2 (lower case) from idempotency keys and from what people noted, and notes about its hash $1. A key
-- becomes another one: the same command would be a new delivery. Notes are those beside changes, suppressions of others and
-- earlier erasures. Reads the tables whole.
WITH keys AS (
    UPDATE mail.idempotency_keys SET key = 'erased:' || delivery_id WHERE strpos(lower(key), $2::text) > 0
    RETURNING source, delivery_id
), told AS (
    UPDATE mail.deliveries d SET idempotency_key = NULL FROM keys k WHERE d.id = k.delivery_id
), notes AS (
    UPDATE mail.operator_changes SET reason = 'erased on request'
    WHERE (address_hash = $1::bytea OR strpos(lower(reason), $2) > 0) AND reason <> 'erased on request'
    RETURNING id
), evidence AS (
    UPDATE mail.suppressions SET evidence = 'erased on request' WHERE address_hash <> $1 AND strpos(lower(evidence), $2) > 0
    RETURNING id
), erasures AS (
    UPDATE mail.erasures SET reason = 'erased on request' WHERE strpos(lower(reason), $2) > 0
    RETURNING id
)
SELECT (SELECT count(*) FROM keys) AS keys,
       (SELECT count(*) FROM notes) + (SELECT count(*) FROM evidence) + (SELECT count(*) FROM erasures) AS notes
