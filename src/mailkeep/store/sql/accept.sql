-- Accept a batch: reserve each idempotency key and, where it was free, keep delivery, recipients and payload.
-- Birth of a delivery: -> rendered | queued (waiting), sending (claimed at birth by $1) or suppressed (stub mode).
-- A taken key writes nothing and is missing in the answer. Waits on the unique index of idempotency_keys for a
-- concurrent holder of the same key; callers sort by key, so that two batches cannot deadlock.
WITH input AS (
    SELECT *
    FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[],
                $9::timestamptz[], $10::text[], $11::text[], $12::int[], $13::bool[], $14::text[], $15::text[],
                $16::text[], $17::text[], $18::bytea[], $19::text[], $20::text[], $21::bytea[], $22::bytea[],
                $23::bytea[], $24::uuid[])
        AS t(id, source, class, guarantee, status, next_hop, send_at, expires_at, recipient_states,
             recipient_domain, size_bytes, sensitive, template_id, catalog_version, locale, key, fingerprint,
             sender, recipients, message, command, supersede_hash, parent_id)
), traced AS (
    SELECT * FROM unnest($25::uuid[], $26::text[]) AS t(id, traceparent)
), reserved AS (
    INSERT INTO mail.idempotency_keys (source, key, fingerprint, delivery_id, first_status)
    SELECT source, key, fingerprint, id, status FROM input
    ON CONFLICT DO NOTHING
    RETURNING delivery_id AS id
), delivered AS (
    INSERT INTO mail.deliveries (
        id, source, class, guarantee, status, next_hop, accepted_at, due_at, expires_at, finished_at,
        claimed_by, claim_token, claimed_at, recipient_states, recipient_domain, size_bytes, sensitive,
        template_id, catalog_version, locale, supersede_hash, parent_id, traceparent)
    SELECT id, source, class, guarantee, status, next_hop, mail.now(),
           CASE WHEN status IN ('queued', 'rendered') THEN greatest(send_at, mail.now()) END,
           expires_at,
           CASE WHEN status = 'suppressed' THEN mail.now() END,
           CASE WHEN status = 'sending' THEN $1::uuid END,
           CASE WHEN status = 'sending' THEN 1 ELSE 0 END,
           CASE WHEN status = 'sending' THEN mail.now() END,
           recipient_states, recipient_domain, size_bytes, sensitive, template_id, catalog_version, locale,
           supersede_hash, parent_id, traceparent
    FROM input JOIN reserved USING (id) LEFT JOIN traced USING (id)
), addressed AS (
    INSERT INTO mail.recipients (address_hash, delivery_id)
    SELECT address_hash, id
    FROM unnest($27::uuid[], $28::bytea[]) AS t(id, address_hash) JOIN reserved USING (id)
    ON CONFLICT DO NOTHING
), kept AS (
    -- A sensitive delivery that ends at birth (stub mode) leaves nothing at rest.
    INSERT INTO mail.payloads (delivery_id, sender, recipients, message, command)
    SELECT id, sender, string_to_array(recipients, E'\n'), message, command
    FROM input JOIN reserved USING (id)
    WHERE NOT (sensitive AND status = 'suppressed')
)
SELECT id FROM reserved
