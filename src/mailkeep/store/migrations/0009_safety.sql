-- Keys that seal payloads, what was erased on request, and a service that needs no right to change the schema.

-- By which keys payloads of this database were sealed: a replica that lacks one of them does not start. The keys
-- themselves are never in the database.
CREATE TABLE mail.payload_keys (
    name text PRIMARY KEY CONSTRAINT payload_keys_name_bounded CHECK (length(name) BETWEEN 1 AND 32),
    mark bytea NOT NULL CONSTRAINT payload_keys_mark_is_8_bytes CHECK (octet_length(mark) = 8),
    first_used_at timestamptz NOT NULL DEFAULT mail.now()
);

-- What was erased on the request of a person: when, by whom, why, how much. Never of whom.
CREATE TABLE mail.erasures (
    id uuid PRIMARY KEY DEFAULT mail.new_id(),
    actor text NOT NULL CONSTRAINT erasures_actor_bounded CHECK (length(actor) BETWEEN 1 AND 200),
    reason text NOT NULL CONSTRAINT erasures_reason_bounded CHECK (length(reason) BETWEEN 1 AND 500),
    erased jsonb NOT NULL, -- counts by kind
    erased_at timestamptz NOT NULL DEFAULT mail.now()
);

-- A day's partitions are made and dropped, and positions of events moved after a restore, with the rights of the schema's owner, so
-- that the service's own role needs none to create or drop tables: these three do nothing else.
ALTER FUNCTION mail.ensure_partitions(date, date) SECURITY DEFINER SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION mail.catch_up_positions() SECURITY DEFINER SET search_path = pg_catalog, pg_temp;

CREATE OR REPLACE FUNCTION mail.drop_day(day text, parents text[]) RETURNS boolean LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    parent text;
    live boolean;
    first_id uuid := mail.uuid_floor(to_date(day, 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC');
    end_id uuid := mail.uuid_floor((to_date(day, 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC');
BEGIN
    IF day !~ '^[0-9]{8}$' OR NOT parents <@ ARRAY['deliveries', 'recipients', 'payloads', 'attempts', 'events'] THEN
        RAISE EXCEPTION 'mail.drop_day drops partitions of a day, nothing else' USING ERRCODE = 'invalid_parameter_value';
    END IF;
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

REVOKE ALL ON FUNCTION mail.ensure_partitions(date, date), mail.drop_day(text, text[]), mail.catch_up_positions() FROM PUBLIC;
