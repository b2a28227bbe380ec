-- Accept a batch: reserve each idempotency key and, where it was free, keep delivery, recipients and payload.
-- Birth of a delivery: -> rendered | queued (waiting), sending (claimed at birth by $1) or suppressed (stub mode, or
-- every recipient is on the suppression list). The answer has recipient_states where that list left somebody out.
-- A taken key writes nothing and is missing in the answer. Waits on the unique index of idempotency_keys for a
-- concurrent holder of the same key; callers sort by key, so that two batches cannot deadlock.
-- waiting -> cancelled: what waits under the supersede key of one that is stored.
-- Columns of short values come as one text each (see store/columns.py); \x1e stands for NULL.
WITH asked AS (
    SELECT *
    FROM unnest(
        string_to_array($2, E'\x1f', E'\x1e')::uuid[],
        string_to_array($3, E'\x1f', E'\x1e'),
        string_to_array($4, E'\x1f', E'\x1e'),
        string_to_array($5, E'\x1f', E'\x1e'),
        string_to_array($6, E'\x1f', E'\x1e'),
        string_to_array($7, E'\x1f', E'\x1e'),
        string_to_array($8, E'\x1f', E'\x1e')::timestamptz[],
        string_to_array($9, E'\x1f', E'\x1e')::timestamptz[],
        string_to_array($10, E'\x1f', E'\x1e'),
        string_to_array($11, E'\x1f', E'\x1e'),
        string_to_array($12, E'\x1f', E'\x1e')::int[],
        string_to_array($13, E'\x1f', E'\x1e')::bool[],
        string_to_array($14, E'\x1f', E'\x1e'),
        string_to_array($15, E'\x1f', E'\x1e'),
        string_to_array($16, E'\x1f', E'\x1e'),
        string_to_array($17, E'\x1f', E'\x1e'),
        string_to_array($18, E'\x1f', E'\x1e'),
        string_to_array($19, E'\x1f', E'\x1e'),
        string_to_array($20, E'\x1f', E'\x1e')::uuid[],
        string_to_array($21, E'\x1f', E'\x1e'),
        string_to_array($22, E'\x1f', E'\x1e'),
        $23::bytea[],
        $24::bytea[],
        $25::bytea[],
        $26::bytea[]
    ) AS t(id, source, class, guarantee, status, next_hop, send_at, expires_at, recipient_states,
           recipient_domain, size_bytes, sensitive, template_id, catalog_version, locale, key, sender, recipients,
           parent_id, traceparent, locale_chain, fingerprint, message, command, supersede_hash)
), recipient AS MATERIALIZED (
    SELECT *
    FROM unnest(string_to_array($27, E'\x1f')::uuid[], $28::bytea[]) WITH ORDINALITY AS t(id, address_hash, place)
), listed AS MATERIALIZED (
    -- By the primary key of suppressions; all that follows from it costs nothing while it is empty.
    SELECT r.id, r.place, s.reason || ': ' || s.evidence AS because
    FROM recipient r JOIN mail.suppressions s USING (address_hash)
    WHERE s.expires_at IS NULL OR s.expires_at > mail.now()
), suppressed AS MATERIALIZED (
    SELECT r.id, string_agg(CASE WHEN l.place IS NULL THEN 'o' ELSE 'x' END, '' ORDER BY r.place) AS recipient_states,
           array_agg(l.because ORDER BY r.place) AS because
    FROM recipient r LEFT JOIN listed l USING (place)
    WHERE r.id IN (SELECT id FROM listed)
    GROUP BY r.id
), input AS (
    SELECT a.id, source, class, guarantee,
           CASE WHEN strpos(s.recipient_states, 'o') = 0 THEN 'suppressed' ELSE status END AS status,
           next_hop, send_at, expires_at, coalesce(s.recipient_states, a.recipient_states) AS recipient_states,
           recipient_domain, size_bytes, sensitive, template_id, catalog_version, locale, key, sender, recipients,
           parent_id, traceparent, locale_chain, fingerprint, message, command, supersede_hash, s.because
    FROM asked a LEFT JOIN suppressed s ON s.id = a.id AND a.status <> 'suppressed'
), reserved AS (
    INSERT INTO mail.idempotency_keys (source, key, fingerprint, delivery_id, first_status)
    SELECT source, key, fingerprint, id, status FROM input
    ON CONFLICT DO NOTHING
    RETURNING delivery_id AS id
), delivered AS (
    INSERT INTO mail.deliveries (
        id, source, class, guarantee, status, next_hop, accepted_at, due_at, expires_at, finished_at,
        claimed_by, claim_token, claimed_at, recipient_states, recipient_domain, size_bytes, sensitive,
        template_id, catalog_version, locale, last_reason, last_rule, supersede_hash, parent_id, traceparent,
        locale_chain, suppressed_because, idempotency_key)
    SELECT id, source, class, guarantee, status, next_hop, mail.now(),
           CASE WHEN status IN ('queued', 'rendered') THEN greatest(send_at, mail.now()) END,
           expires_at,
           CASE WHEN status = 'suppressed' THEN mail.now() END,
           CASE WHEN status = 'sending' THEN $1::uuid END,
           CASE WHEN status = 'sending' THEN 1 ELSE 0 END,
           CASE WHEN status = 'sending' THEN mail.now() END,
           recipient_states, recipient_domain, size_bytes, sensitive, template_id, catalog_version, locale,
           'on the suppression list, ' || (array_remove(because, NULL))[1],
           CASE WHEN because IS NOT NULL THEN 'suppression_list' END,
           supersede_hash, parent_id, traceparent, locale_chain, because, nullif(key, id::text)
    FROM input JOIN reserved USING (id)
), superseding AS MATERIALIZED (
    -- A function, since only what is called opens the days on which older ones may wait (see migrations/0013_supersede.sql).
    SELECT mail.supersede(array_agg(supersede_hash), array_agg(id)) AS cancelled
    FROM input JOIN reserved USING (id)
    WHERE supersede_hash IS NOT NULL
    HAVING count(*) > 0
), addressed AS (
    -- Whom its content names beside them are not looked up on any list.
    INSERT INTO mail.recipients (address_hash, delivery_id, addressed)
    SELECT address_hash, id, true FROM recipient JOIN reserved USING (id)
    UNION ALL
    SELECT address_hash, id, false
    FROM unnest(string_to_array($29, E'\x1f')::uuid[], $30::bytea[]) AS named(id, address_hash) JOIN reserved USING (id)
    ON CONFLICT DO NOTHING
), kept AS (
    -- A sensitive delivery that ends at birth leaves nothing at rest.
    INSERT INTO mail.payloads (delivery_id, sender, recipients, message, command)
    -- Null stands for the null reverse-path: an empty text can't stand in a column.
    SELECT id, coalesce(sender, ''), string_to_array(recipients, E'\n'), message, command
    FROM input JOIN reserved USING (id)
    WHERE NOT (sensitive AND status = 'suppressed')
)
-- `cancelled` is asked for because a part that nobody reads is not run.
SELECT r.id, s.recipient_states, o.cancelled
FROM reserved r LEFT JOIN suppressed s USING (id) LEFT JOIN superseding o ON true
