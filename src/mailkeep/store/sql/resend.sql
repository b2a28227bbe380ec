-- Make a new delivery ($6) of the content of delivery $1, for those of its recipients who did not get it (all, if all did),
-- due in $9 seconds: the parent's bytes and Message-ID under a new id, so that a receiver who has it already can tell. Reserves
-- ('operator_resend', $2, or its own id); where it is taken nothing is made. $5, $7: the hash of each of the parent's
-- recipients, and its address as the new delivery has it; $8, $10: message and sender likewise (all may be sealed). $11: the
-- hashes of whom else the content names; recipients that are left out are among those, too. A held parent is
-- cancelled: the new one stands for it. Records who ($3) did it and why ($4). No row where the
-- parent still waits or is being sent, or its content is erased.
WITH fresh AS MATERIALIZED (
    SELECT $6::uuid AS id
), parent AS (
    SELECT d.*,
           CASE WHEN rtrim(d.recipient_states, 's') = '' THEN 's' ELSE '' END AS addressed
    FROM mail.deliveries d JOIN mail.payloads p ON p.delivery_id = d.id
    WHERE d.id = $1::uuid AND p.message IS NOT NULL AND d.status NOT IN ('queued', 'rendered', 'sending')
    FOR UPDATE OF d
), chosen AS (
    SELECT r.address, r.ordinal
    FROM parent CROSS JOIN LATERAL unnest($7::text[]) WITH ORDINALITY AS r(address, ordinal)
    WHERE substr(parent.recipient_states, r.ordinal::int, 1) <> 's' OR parent.addressed = 's'
), reserved AS (
    INSERT INTO mail.idempotency_keys (source, key, fingerprint, delivery_id, first_status)
    SELECT 'operator_resend', coalesce($2::text, fresh.id::text), uuid_send($1), fresh.id, 'rendered' FROM parent, fresh
    ON CONFLICT DO NOTHING
    RETURNING delivery_id AS id
), delivered AS (
    INSERT INTO mail.deliveries (
        id, source, class, guarantee, status, next_hop, accepted_at, due_at, recipient_states, recipient_domain,
        size_bytes, sensitive, template_id, catalog_version, locale, locale_chain, parent_id, traceparent,
        idempotency_key)
    SELECT reserved.id, 'operator_resend', class, guarantee, 'rendered', next_hop, mail.now(),
           mail.now() + $9::float8 * interval '1 second',
           repeat('o', (SELECT count(*) FROM chosen)::int), recipient_domain, size_bytes, sensitive, template_id,
           catalog_version, locale, locale_chain, parent.id, traceparent, $2
    FROM parent, reserved
), addressed AS (
    INSERT INTO mail.recipients (address_hash, delivery_id, addressed)
    SELECT address_hash, reserved.id, bool_or(addressed)
    FROM reserved, (
        SELECT r.address_hash, c.ordinal IS NOT NULL AS addressed
        FROM unnest($5::bytea[]) WITH ORDINALITY AS r(address_hash, ordinal) LEFT JOIN chosen c USING (ordinal)
        UNION ALL
        SELECT address_hash, false FROM unnest($11::bytea[]) AS n(address_hash)
    ) named
    GROUP BY address_hash, reserved.id
), kept AS (
    INSERT INTO mail.payloads (delivery_id, sender, recipients, message)
    SELECT reserved.id, $10::text, (SELECT array_agg(address ORDER BY ordinal) FROM chosen), $8::bytea
    FROM parent, reserved
), replaced AS (
    UPDATE mail.deliveries d
    SET status = 'cancelled', finished_at = mail.now(), due_at = NULL, last_reason = 'resent as ' || reserved.id, last_rule = 'operator'
    FROM reserved
    WHERE d.id = $1 AND d.status = 'held'
), recorded AS (
    INSERT INTO mail.operator_changes (delivery_id, verb, status, actor, reason)
    SELECT parent.id, 'resend', CASE parent.status WHEN 'held' THEN 'cancelled' ELSE parent.status END, $3::text, $4::text
    FROM parent, reserved
)
SELECT id FROM reserved
