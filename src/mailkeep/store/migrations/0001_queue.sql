-- The queue. A delivery's whole state is in these tables; nothing of it lives on a replica's disk or in Redis.
--
-- deliveries, recipients, payloads and attempts are partitioned by day over the UUIDv7 id, so that retention drops
-- partitions instead of deleting rows. There are no foreign keys between them: rows that belong together are written
-- by one statement, and the keys would cost a lookup per row on the hot path.

CREATE TABLE mail.deployment (
    only_row boolean PRIMARY KEY DEFAULT true CONSTRAINT deployment_has_one_row CHECK (only_row),
    -- Keys the hashes of addresses and commands; made here so that every replica has the same one.
    hash_key bytea NOT NULL CONSTRAINT deployment_hash_key_is_32_bytes CHECK (octet_length(hash_key) = 32)
);
INSERT INTO mail.deployment (hash_key)
VALUES (decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));

-- The one clock. Tests shift it by `ALTER DATABASE … SET mail.clock_offset = '2 hours'`.
CREATE FUNCTION mail.now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT now() + coalesce(nullif(current_setting('mail.clock_offset', true), ''), '0')::interval $$;

CREATE TABLE mail.replicas (
    id uuid PRIMARY KEY,
    host text NOT NULL,
    pid integer NOT NULL,
    version text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT mail.now(),
    last_seen_at timestamptz NOT NULL DEFAULT mail.now(),
    in_flight integer NOT NULL DEFAULT 0,
    stopped_at timestamptz, -- left in order
    lost_at timestamptz -- silent for longer than the TTL; its claims are taken over
);

CREATE TABLE mail.deliveries (
    id uuid PRIMARY KEY,
    source text NOT NULL CONSTRAINT deliveries_source_known CHECK (
        source IN ('authsession', 'notification', 'api', 'send', 'sql', 'smtp', 'operator_resend')),
    class text NOT NULL CONSTRAINT deliveries_class_known CHECK (class IN ('auth', 'transactional', 'relay')),
    guarantee text NOT NULL CONSTRAINT deliveries_guarantee_known CHECK (
        guarantee IN ('at_least_once', 'at_most_once')),
    status text NOT NULL CONSTRAINT deliveries_status_known CHECK (
        status IN ('queued', 'rendered', 'sending', 'held',
                   'sent', 'suppressed', 'failed', 'dead_letter', 'expired', 'cancelled')),
    next_hop text NOT NULL,
    accepted_at timestamptz NOT NULL,
    due_at timestamptz,
    expires_at timestamptz,
    finished_at timestamptz,
    attempts smallint NOT NULL DEFAULT 0 CONSTRAINT deliveries_attempts_counted CHECK (attempts >= 0),
    rungs_used smallint NOT NULL DEFAULT 0 CONSTRAINT deliveries_rungs_counted CHECK (rungs_used >= 0),
    takeovers smallint NOT NULL DEFAULT 0, -- in a row, without a recorded attempt between them
    claimed_by uuid,
    claim_token integer NOT NULL DEFAULT 0, -- the fencing token: one higher at each claim
    claimed_at timestamptz,
    dot_at timestamptz, -- at_most_once: committed before the final dot leaves
    recipient_states text NOT NULL CONSTRAINT deliveries_recipient_states_known CHECK (
        recipient_states <> '' AND rtrim(recipient_states, 'osfx') = ''),
    recipient_domain text NOT NULL, -- of the first recipient
    size_bytes integer NOT NULL,
    sensitive boolean NOT NULL, -- its payload is erased as soon as it ends
    template_id text,
    catalog_version text,
    locale text,
    last_reason text,
    last_rule text,
    supersede_hash bytea,
    parent_id uuid,
    traceparent text,
    -- A held one keeps the time that it waited for.
    CONSTRAINT deliveries_waiting_has_due_at CHECK (CASE status
        WHEN 'queued' THEN due_at IS NOT NULL
        WHEN 'rendered' THEN due_at IS NOT NULL
        WHEN 'held' THEN true
        ELSE due_at IS NULL END),
    CONSTRAINT deliveries_sending_has_claim CHECK (
        (claimed_by IS NOT NULL) = (status = 'sending') AND (claimed_at IS NOT NULL) = (status = 'sending')),
    CONSTRAINT deliveries_ended_has_finished_at CHECK (
        (finished_at IS NOT NULL) = (status IN ('sent', 'suppressed', 'failed', 'dead_letter', 'expired', 'cancelled'))),
    -- One letter a recipient: o open, s sent, f failed, x suppressed. Nothing settled waits, nothing open is settled.
    CONSTRAINT deliveries_status_agrees_with_recipients CHECK (CASE status
        WHEN 'sent' THEN rtrim(recipient_states, 's') = ''
        WHEN 'failed' THEN strpos(recipient_states, 'o') = 0 AND strpos(recipient_states, 'f') > 0
        WHEN 'suppressed' THEN rtrim(recipient_states, 'sx') = '' AND strpos(recipient_states, 'x') > 0
        ELSE strpos(recipient_states, 'o') > 0 END)
) PARTITION BY RANGE (id);

-- Due rows, reached per next hop and class so that a parked hop's backlog is never scanned.
CREATE INDEX deliveries_due ON mail.deliveries (next_hop, class, due_at) WHERE status IN ('queued', 'rendered');
CREATE INDEX deliveries_expiring ON mail.deliveries (expires_at)
    WHERE status IN ('queued', 'rendered') AND expires_at IS NOT NULL;
CREATE INDEX deliveries_superseding ON mail.deliveries (supersede_hash)
    WHERE status IN ('queued', 'rendered') AND supersede_hash IS NOT NULL;
CREATE INDEX deliveries_suspect ON mail.deliveries (due_at) WHERE status IN ('queued', 'rendered') AND takeovers >= 2;
CREATE INDEX deliveries_claimed ON mail.deliveries (claimed_by) WHERE status = 'sending';
CREATE INDEX deliveries_held ON mail.deliveries (id) WHERE status = 'held';

CREATE TABLE mail.recipients (
    address_hash bytea NOT NULL,
    delivery_id uuid NOT NULL,
    PRIMARY KEY (address_hash, delivery_id)
) PARTITION BY RANGE (delivery_id);

CREATE TABLE mail.payloads (
    delivery_id uuid PRIMARY KEY,
    sender text NOT NULL,
    recipients text[] NOT NULL CONSTRAINT payloads_has_recipients CHECK (cardinality(recipients) > 0),
    message bytea, -- CRLF lines, equal on each attempt
    command bytea, -- of a `queued` delivery: what is still to be rendered
    CONSTRAINT payloads_has_content CHECK (message IS NOT NULL OR command IS NOT NULL)
) PARTITION BY RANGE (delivery_id);

CREATE TABLE mail.attempts (
    delivery_id uuid NOT NULL,
    number smallint NOT NULL CONSTRAINT attempts_number_from_1 CHECK (number >= 1),
    status text NOT NULL CONSTRAINT attempts_status_known CHECK (
        status IN ('provider_accepted', 'provider_rejected', 'transport_failed', 'timed_out',
                   'render_failed', 'abandoned')),
    certainty text NOT NULL CONSTRAINT attempts_certainty_known CHECK (
        certainty IN ('delivered', 'not_delivered', 'unknown')),
    phase text,
    severity text,
    scope text,
    rule text,
    next_hop text NOT NULL,
    code smallint,
    enhanced text,
    reply text,
    replica_id uuid NOT NULL,
    claim_token integer NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    recipients jsonb, -- each recipient's outcome where they differ or did not succeed
    steps jsonb, -- the SMTP dialog, secrets and addresses masked
    PRIMARY KEY (delivery_id, number),
    CONSTRAINT attempts_accepted_is_delivered CHECK ((status = 'provider_accepted') = (certainty = 'delivered'))
) PARTITION BY RANGE (delivery_id);

CREATE TABLE mail.dead_letters (
    delivery_id uuid PRIMARY KEY,
    cause text NOT NULL CONSTRAINT dead_letters_cause_known CHECK (cause IN ('ladder_exhausted', 'poison', 'operator')),
    reason text NOT NULL,
    buried_at timestamptz NOT NULL DEFAULT mail.now()
);

CREATE TABLE mail.idempotency_keys (
    source text NOT NULL,
    key text NOT NULL CONSTRAINT idempotency_keys_bounded CHECK (length(key) BETWEEN 1 AND 255),
    fingerprint bytea NOT NULL,
    delivery_id uuid NOT NULL,
    first_status text NOT NULL, -- what the first caller was answered
    reserved_at timestamptz NOT NULL DEFAULT mail.now(),
    PRIMARY KEY (source, key)
);
CREATE INDEX idempotency_keys_reserved_at ON mail.idempotency_keys USING brin (reserved_at);

CREATE FUNCTION mail.uuid_floor(instant timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT (lpad(to_hex((extract(epoch FROM instant) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid $$;

-- Make the partitions of each UTC day from first_day to last_day; those that exist stay.
CREATE FUNCTION mail.ensure_partitions(first_day date, last_day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    day date;
    parent text;
    storage text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('mail.ensure_partitions'));
    FOR day IN SELECT generate_series(first_day, last_day, interval '1 day')::date LOOP
        FOREACH parent IN ARRAY ARRAY['deliveries', 'recipients', 'payloads', 'attempts'] LOOP
            CONTINUE WHEN to_regclass(format('mail.%I', parent || '_p' || to_char(day, 'YYYYMMDD'))) IS NOT NULL;
            storage := CASE parent
                -- Messages of a few kB stay in the row instead of a TOAST table of their own.
                WHEN 'payloads' THEN 'toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.2'
                WHEN 'deliveries' THEN 'autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.1'
                ELSE 'autovacuum_vacuum_insert_scale_factor = 0.5'
            END;
            EXECUTE format(
                'CREATE TABLE mail.%I PARTITION OF mail.%I FOR VALUES FROM (%L) TO (%L) WITH (%s)',
                parent || '_p' || to_char(day, 'YYYYMMDD'), parent,
                mail.uuid_floor(day::timestamp AT TIME ZONE 'UTC'),
                mail.uuid_floor((day + 1)::timestamp AT TIME ZONE 'UTC'), storage);
            IF parent = 'payloads' THEN
                -- No compression: most messages are small, and pglz would cost more CPU than the disk it saves.
                EXECUTE format('ALTER TABLE mail.%I ALTER COLUMN message SET STORAGE EXTERNAL',
                               parent || '_p' || to_char(day, 'YYYYMMDD'));
            END IF;
        END LOOP;
    END LOOP;
END $$;

-- Drop the partitions of one day of the given tables; false while one of its deliveries is live or a lock can't be had
-- at once (dropping locks the parent table for a moment, and must not queue behind a long reader).
CREATE FUNCTION mail.drop_day(day text, parents text[]) RETURNS boolean LANGUAGE plpgsql SET lock_timeout = '200ms' AS $$
DECLARE
    parent text;
    live boolean;
    first_id uuid := mail.uuid_floor(to_date(day, 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC');
    end_id uuid := mail.uuid_floor((to_date(day, 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('mail.ensure_partitions')); -- one sweep at a time, and none beside a new day
    IF to_regclass('mail.deliveries_p' || day) IS NOT NULL THEN
        -- Locked first, so that no row can come alive between the look and the drop.
        EXECUTE format('LOCK TABLE mail.%I IN SHARE MODE', 'deliveries_p' || day);
        EXECUTE format('SELECT EXISTS (SELECT FROM mail.%I WHERE finished_at IS NULL)', 'deliveries_p' || day) INTO live;
        IF live THEN
            RETURN false;
        END IF;
    END IF;
    IF 'deliveries' = ANY (parents) THEN
        DELETE FROM mail.dead_letters WHERE delivery_id >= first_id AND delivery_id < end_id;
    END IF;
    FOREACH parent IN ARRAY parents LOOP
        EXECUTE format('DROP TABLE IF EXISTS mail.%I', parent || '_p' || day);
    END LOOP;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;
