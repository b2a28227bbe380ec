-- Dropping a day reads none of its rows, and waits for the statements under way without standing in a circle with them: it takes the
-- locks that dropping needs in the order in which accepting, claiming and recording take theirs.

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
    FOREACH parent IN ARRAY ARRAY['deliveries', 'recipients', 'attempts', 'payloads', 'events'] LOOP
        CONTINUE WHEN parent <> ALL (parents);
        EXECUTE format('LOCK TABLE ONLY mail.%I IN ACCESS EXCLUSIVE MODE', parent);
    END LOOP;
    IF to_regclass('mail.deliveries_p' || day) IS NOT NULL THEN
        -- Locked first, so that no row can come alive between the look and the drop.
        EXECUTE format('LOCK TABLE mail.%I IN SHARE MODE', 'deliveries_p' || day);
        -- By the indexes of what lives: a whole day of millions would be read for `finished_at IS NULL`.
        EXECUTE format($look$
            SELECT EXISTS (SELECT FROM mail.%1$I WHERE status IN ('queued', 'rendered'))
                OR EXISTS (SELECT FROM mail.%1$I WHERE status = 'sending')
                OR EXISTS (SELECT FROM mail.%1$I WHERE status = 'held')
            $look$, 'deliveries_p' || day) INTO live;
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
