-- Commands that nobody waits for an answer to: those from SQL on their way in, and those that could not be taken.

CREATE TABLE mail.malformed_commands (
    id uuid PRIMARY KEY,
    intake text NOT NULL CONSTRAINT malformed_commands_intake_known CHECK (intake IN ('stream', 'sql')),
    entry_id text NOT NULL, -- the stream entry's id, or the one mail.enqueue answered
    failure_code text NOT NULL,
    field text NOT NULL,
    message text NOT NULL,
    delivery_id text, -- as the producer gave them, if they can be read
    source text,
    raw bytea NOT NULL, -- MessagePack: field name -> value, both bytes
    cut boolean NOT NULL, -- the raw fields were too large to be kept whole; not replayable
    rejected_at timestamptz NOT NULL DEFAULT mail.now(),
    replayed_at timestamptz,
    replayed_as uuid,
    CONSTRAINT malformed_commands_once UNIQUE (intake, entry_id)
);

-- The inbox of mail.enqueue: each row is a command of a committed transaction, until it is taken.
CREATE TABLE mail.enqueued (
    id uuid PRIMARY KEY,
    command jsonb NOT NULL,
    taken_at timestamptz -- by a replica that is working on it; free again when that takes too long
);
CREATE INDEX enqueued_by_key ON mail.enqueued ((command ->> 'source'), (command ->> 'idempotency_key'));

-- A UUIDv7 (RFC 9562 section 5.7) of now; PostgreSQL has one of its own only from 18 on.
CREATE FUNCTION mail.new_id() RETURNS uuid LANGUAGE sql VOLATILE AS
$$ SELECT encode(
       set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
               PLACING substring(int8send((extract(epoch FROM mail.now()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1),
       'hex')::uuid $$;

-- Hand a delivery command over inside the caller's own transaction: the mail exists exactly if that commits. Answers the
-- delivery's id: that of an earlier command with the same source and idempotency key, else the command's own, else a new
-- one. A command that turns out to be bad is recorded as malformed under the id answered here.
CREATE FUNCTION mail.enqueue(command jsonb) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wanted_source text := coalesce(command ->> 'source', 'sql');
    wanted_key text := command ->> 'idempotency_key';
    wanted_id text := command ->> 'delivery_id';
    new_id uuid;
BEGIN
    IF command IS NULL OR jsonb_typeof(command) <> 'object' THEN
        RAISE EXCEPTION 'mail.enqueue takes a JSON object, such as {"payload_mode": "rendered", "payload": {…}}'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF wanted_key IS NOT NULL THEN
        SELECT delivery_id INTO new_id FROM mail.idempotency_keys k WHERE k.source = wanted_source AND k.key = wanted_key;
        IF new_id IS NULL THEN
            SELECT id INTO new_id FROM mail.enqueued e
            WHERE e.command ->> 'source' = wanted_source AND e.command ->> 'idempotency_key' = wanted_key
            ORDER BY id LIMIT 1;
        END IF;
    END IF;
    IF NOT EXISTS (SELECT FROM mail.enqueued WHERE taken_at IS NULL) THEN
        PERFORM pg_notify('mail_enqueued', '');
    END IF;
    command := command || jsonb_build_object('source', wanted_source);
    IF new_id IS NOT NULL THEN
        -- Still taken, so that another command under the same key is seen; it can't become a second delivery.
        INSERT INTO mail.enqueued (id, command) VALUES (mail.new_id(), command);
        RETURN new_id;
    END IF;
    IF wanted_id ~ '^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$' THEN
        new_id := wanted_id::uuid;
        IF EXISTS (SELECT FROM mail.enqueued WHERE id = new_id) THEN
            new_id := mail.new_id(); -- the command is taken, and refused as a second one of that id
        END IF;
    ELSE
        new_id := mail.new_id();
    END IF;
    INSERT INTO mail.enqueued (id, command) VALUES (new_id, command);
    RETURN new_id;
END $$;
REVOKE ALL ON FUNCTION mail.enqueue(jsonb) FROM PUBLIC;
