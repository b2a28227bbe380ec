-- What became of each delivery, for programs that want to know: events, written by the statement that made it so; and
-- webhooks, which tell them on.

-- What the caller named it by, if at all; null of what was accepted before this column was there.
ALTER TABLE mail.deliveries ADD COLUMN idempotency_key text;

-- An event lives as long as its delivery, in the partition of the same day; what never changes of a delivery is read there.
-- Ids are drawn before their commit: a reader who went by them alone would pass over what commits late. So the order is that
-- of `position`, the transaction that wrote it, and only what is older than every transaction under way is read.
CREATE SEQUENCE mail.event_ids;
CREATE TABLE mail.events (
    delivery_id uuid NOT NULL,
    id bigint NOT NULL DEFAULT nextval('mail.event_ids'),
    position bigint NOT NULL,
    status text NOT NULL CONSTRAINT events_status_known CHECK (
        status IN ('sent', 'suppressed', 'failed', 'dead_letter', 'expired', 'cancelled', 'held')),
    attempts smallint NOT NULL,
    rule text,
    occurred_at timestamptz NOT NULL
) PARTITION BY RANGE (delivery_id);
CREATE INDEX events_in_order ON mail.events (position, id);

-- A dump that is restored elsewhere meets transactions with lower ids than those in it; this makes up for the difference.
ALTER TABLE mail.deployment ADD COLUMN position_shift bigint NOT NULL DEFAULT 0;

-- The position of what this transaction writes.
CREATE FUNCTION mail.event_position() RETURNS bigint LANGUAGE sql STABLE AS
$$ SELECT pg_current_xact_id()::text::bigint + position_shift FROM mail.deployment WHERE only_row $$;

-- After a dump was restored into another cluster: let positions go on above all that are known. Else, and where nothing can be
-- written, it only looks.
CREATE FUNCTION mail.catch_up_positions() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    known bigint := greatest((SELECT max(position) FROM mail.events), (SELECT max(position) FROM mail.webhooks));
BEGIN
    IF known > pg_snapshot_xmax(pg_current_snapshot())::text::bigint + (SELECT position_shift FROM mail.deployment) THEN
        UPDATE mail.deployment
        SET position_shift = known + 1 - pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
    END IF;
END $$;

-- Whatever lies below is written and committed, or never will be.
CREATE FUNCTION mail.event_horizon() RETURNS bigint LANGUAGE sql STABLE AS
$$ SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint + position_shift FROM mail.deployment WHERE only_row $$;

-- One statement for all that a statement moved. What ended before keeps its instant, so that the clock of the transaction
-- tells what ended now; nothing that is held is updated and stays held.
CREATE FUNCTION mail.tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO mail.events (delivery_id, position, status, attempts, rule, occurred_at)
    SELECT id, (SELECT mail.event_position()), status, attempts, last_rule, mail.now()
    FROM moved
    WHERE status = 'held' OR finished_at = mail.now();
    RETURN NULL;
END $$;
CREATE TRIGGER tell AFTER UPDATE ON mail.deliveries REFERENCING NEW TABLE AS moved FOR EACH STATEMENT
EXECUTE FUNCTION mail.tell();

-- What ends at birth: by itself, so that all that is born otherwise costs a look at its status.
CREATE FUNCTION mail.tell_birth() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO mail.events (delivery_id, position, status, attempts, rule, occurred_at)
    VALUES (NEW.id, mail.event_position(), NEW.status, NEW.attempts, NEW.last_rule, mail.now());
    RETURN NULL;
END $$;
CREATE TRIGGER tell_birth AFTER INSERT ON mail.deliveries FOR EACH ROW WHEN (NEW.finished_at IS NOT NULL)
EXECUTE FUNCTION mail.tell_birth();

-- How far each webhook is. All events up to its cursor are told, or are among its retries.
CREATE TABLE mail.webhooks (
    name text PRIMARY KEY,
    position bigint NOT NULL,
    event_id bigint NOT NULL,
    held_by uuid, -- the replica that tells it; when that one is gone, any other
    told bigint NOT NULL DEFAULT 0,
    told_at timestamptz,
    problem text, -- why the last round told nothing; null when it did
    disabled_at timestamptz -- its receiver said that it is gone for good
);
CREATE TABLE mail.webhook_retries (
    webhook text NOT NULL REFERENCES mail.webhooks ON DELETE CASCADE,
    event_id bigint NOT NULL,
    position bigint NOT NULL, -- with delivery_id: where the event stands
    delivery_id uuid NOT NULL,
    tries smallint NOT NULL,
    due_at timestamptz, -- null: given up
    problem text NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT mail.now(),
    PRIMARY KEY (webhook, event_id)
);
CREATE INDEX webhook_retries_due ON mail.webhook_retries (webhook, due_at);

-- Make the partitions of each UTC day from first_day to last_day; those that exist stay.
CREATE OR REPLACE FUNCTION mail.ensure_partitions(first_day date, last_day date) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    day date;
    parent text;
    storage text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('mail.ensure_partitions'));
    FOR day IN SELECT generate_series(first_day, last_day, interval '1 day')::date LOOP
        FOREACH parent IN ARRAY ARRAY['deliveries', 'recipients', 'payloads', 'attempts', 'events'] LOOP
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
DO $$
DECLARE
    day date;
BEGIN
    FOR day IN SELECT to_date(right(c.relname, 8), 'YYYYMMDD') FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
               WHERE i.inhparent = 'mail.deliveries'::regclass LOOP
        PERFORM mail.ensure_partitions(day, day);
    END LOOP;
END $$;
