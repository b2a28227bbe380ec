-- Commands that nobody waits for an answer to: those from SQL on their way in, and those that could not be taken.

CREATE TABLE mail.malformed_commands (
    id uuid PRIMARY KEY,
    intake text NOT NULL CONSTRAINT malformed_commands_intake_known CHECK (intake IN ('stream', 'sql')),
    entry_id text NOT NULL, -- of the stream entry, or of the row of mail.enqueued
    failure_code text NOT NULL,
    field text NOT NULL,
    message text NOT NULL,
    delivery_id text, -- as mail.enqueue answered, or as the producer gave it, if it can be read
    source text,
    raw bytea NOT NULL, -- MessagePack: field name -> value, both bytes
    cut boolean NOT NULL, -- the raw fields were too large to be kept whole; not replayable
    rejected_at timestamptz NOT NULL DEFAULT mail.now(),
    replayed_at timestamptz,
    replayed_as uuid, -- the delivery that it became
    replay_refusal text, -- or why the last replay was refused again
    CONSTRAINT malformed_commands_once UNIQUE (intake, entry_id),
    CONSTRAINT malformed_commands_replay_has_answer CHECK (
        (replayed_at IS NOT NULL) = (replayed_as IS NOT NULL OR replay_refusal IS NOT NULL))
);

-- A UUIDv7 (RFC 9562 section 5.7) of now; PostgreSQL has one of its own only from 18 on.
CREATE FUNCTION mail.new_id() RETURNS uuid LANGUAGE sql VOLATILE AS
$$ SELECT encode(
       set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
               PLACING substring(int8send((extract(epoch FROM mail.now()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1),
       'hex')::uuid $$;

-- The inbox: commands of committed transactions by mail.enqueue, and replays that operators ask for, until they are taken.
CREATE TABLE mail.enqueued (
    id uuid PRIMARY KEY DEFAULT mail.new_id(),
    command jsonb NOT NULL, -- of a replay, the fields to repair: text, or null to leave one out
    size_bytes integer NOT NULL, -- of the command as text
    delivery_id uuid, -- what mail.enqueue answered
    source text, -- with its key, of the first command under that key
    key text,
    replay_of uuid CONSTRAINT enqueued_replay_once UNIQUE REFERENCES mail.malformed_commands ON DELETE CASCADE,
    taken_at timestamptz, -- by a replica that is working on it; free again when that takes too long
    CONSTRAINT enqueued_key_once UNIQUE (source, key),
    CONSTRAINT enqueued_is_command_or_replay CHECK ((delivery_id IS NULL) = (replay_of IS NOT NULL))
);

-- Hand a delivery command over inside the caller's own transaction: the mail exists exactly if that commits. Answers the
-- delivery's id: that of an earlier command with the same source and idempotency key, else the command's own, else a new
-- one. Waits for another transaction that uses the same key at this moment, as any unique key does. A command that turns
-- out to be bad is recorded as malformed under the id answered here.
CREATE FUNCTION mail.enqueue(command jsonb) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wanted_source text := coalesce(command ->> 'source', 'sql');
    wanted_key text := command ->> 'idempotency_key';
    wanted_id text := command ->> 'delivery_id';
    has_own_id boolean := wanted_id ~ '^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$';
    answer uuid := CASE WHEN has_own_id THEN wanted_id::uuid ELSE mail.new_id() END;
    earlier uuid;
    row_id uuid;
BEGIN
    IF command IS NULL OR jsonb_typeof(command) <> 'object' THEN
        RAISE EXCEPTION 'mail.enqueue takes a JSON object, such as {"payload_mode": "rendered", "payload": {…}}'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- A command that nobody has taken yet was announced already. Commits that notify wait for each other.
    IF (SELECT taken_at IS NULL FROM mail.enqueued ORDER BY id LIMIT 1) IS NOT TRUE THEN
        PERFORM pg_notify('mail_enqueued', '');
    END IF;
    command := command || jsonb_build_object('source', wanted_source);
    IF wanted_id IS NULL THEN
        command := command || jsonb_build_object('delivery_id', answer);
    END IF;
    -- A source or key that is too long to be valid holds nothing; the command is refused when it is taken.
    WHILE length(wanted_source) <= 255 AND length(wanted_key) BETWEEN 1 AND 255 LOOP
        INSERT INTO mail.enqueued (command, size_bytes, delivery_id, source, key)
        VALUES (command, octet_length(command::text), answer, wanted_source, wanted_key)
        ON CONFLICT (source, key) DO NOTHING RETURNING id INTO row_id;
        IF FOUND THEN
            -- Looked up after the insert, which may have waited: a row that stood in its way leaves only once its key is kept.
            SELECT delivery_id INTO earlier FROM mail.idempotency_keys k WHERE k.source = wanted_source AND k.key = wanted_key;
            IF NOT FOUND THEN
                RETURN answer;
            END IF;
            DELETE FROM mail.enqueued e WHERE e.id = row_id;
            EXIT;
        END IF;
        SELECT delivery_id INTO earlier FROM mail.enqueued e WHERE e.source = wanted_source AND e.key = wanted_key;
        EXIT WHEN FOUND; -- else it was taken at this moment: look again
    END LOOP;
    -- Without a key of its own, or not the first under its key: still taken, so that another command is seen.
    IF earlier IS NOT NULL AND coalesce(has_own_id, true) THEN
        command := command || jsonb_build_object('delivery_id', earlier);
    END IF;
    INSERT INTO mail.enqueued (command, size_bytes, delivery_id)
    VALUES (command, octet_length(command::text), coalesce(earlier, answer));
    RETURN coalesce(earlier, answer);
END $$;
REVOKE ALL ON FUNCTION mail.enqueue(jsonb) FROM PUBLIC;
