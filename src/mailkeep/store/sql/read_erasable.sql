-- Count what is stored of the address with the hash $1, in lower case $2: of a recipient, or of one whom content names; bounces
-- taken in the last $3 seconds are being made. By the primary key of recipients; keys, notes and the inbox are read whole.
SELECT count(*) FILTER (WHERE d.status IN ('queued', 'rendered', 'held')) AS waiting,
       count(*) FILTER (WHERE d.status = 'sending') AS sending,
       count(*) FILTER (WHERE d.finished_at IS NOT NULL) AS deliveries,
       (SELECT count(*) FROM mail.payloads p JOIN mail.recipients q ON q.delivery_id = p.delivery_id
        WHERE q.address_hash = $1) AS payloads,
       (SELECT count(*) FROM mail.attempts a JOIN mail.recipients q ON q.delivery_id = a.delivery_id
        WHERE q.address_hash = $1) AS attempts,
       (SELECT count(*) FROM mail.dead_letters l JOIN mail.recipients q ON q.delivery_id = l.delivery_id
        WHERE q.address_hash = $1) AS dead_letters,
       (SELECT count(*) FROM mail.suppressions WHERE address_hash = $1) AS suppressions,
       (SELECT count(*) FROM mail.idempotency_keys WHERE strpos(lower(key), $2::text) > 0) AS keys,
       (SELECT count(*) FROM mail.operator_changes WHERE address_hash = $1 OR strpos(lower(reason), $2) > 0)
       + (SELECT count(*) FROM mail.suppressions WHERE address_hash <> $1 AND strpos(lower(evidence), $2) > 0)
       + (SELECT count(*) FROM mail.erasures WHERE strpos(lower(reason), $2) > 0) AS notes,
       (SELECT count(*) FROM mail.api_keys WHERE $2 = ANY (senders) OR strpos(lower(name), $2) > 0) AS api_keys,
       (SELECT count(*) FROM mail.api_keys
        WHERE $2 = ANY (senders) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > mail.now())) AS keys_in_force,
       (SELECT count(*) FROM mail.bounces_owed o JOIN mail.recipients q ON q.delivery_id = o.delivery_id
        WHERE q.address_hash = $1 AND o.taken_at >= mail.now() - $3::float8 * interval '1 second') AS bounces,
       (SELECT count(*) FROM mail.enqueued WHERE strpos(lower(command::text), $2) > 0) AS inbox
FROM mail.recipients r JOIN mail.deliveries d ON d.id = r.delivery_id
WHERE r.address_hash = $1::bytea
