-- Count what is stored of the recipient with the hash $1, whose address in lower case is $2. By the primary key of recipients;
-- keys, notes and the inbox are read whole.
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
       (SELECT count(*) FROM mail.operator_changes WHERE address_hash = $1 OR strpos(lower(reason), $2) > 0) AS notes,
       (SELECT count(*) FROM mail.enqueued WHERE strpos(lower(command::text), $2) > 0) AS inbox
FROM mail.recipients r JOIN mail.deliveries d ON d.id = r.delivery_id
WHERE r.address_hash = $1::bytea
