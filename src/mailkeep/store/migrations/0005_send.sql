-- The public send intake: the keys that programs send with. And bounces: what relayed mail owes its sender.

CREATE TABLE mail.api_keys (
    -- The public half of the token; the secret half stands here as its SHA-256 only (it has 256 random bits).
    id text PRIMARY KEY CONSTRAINT api_keys_id_is_16_hex CHECK (id ~ '^[0-9a-f]{16}$'),
    name text NOT NULL CONSTRAINT api_keys_name_bounded CHECK (length(name) BETWEEN 1 AND 100),
    secret_hash bytea NOT NULL CONSTRAINT api_keys_secret_is_hashed CHECK (octet_length(secret_hash) = 32),
    senders text[] NOT NULL CONSTRAINT api_keys_has_senders CHECK (cardinality(senders) BETWEEN 1 AND 100),
    actor text NOT NULL CONSTRAINT api_keys_actor_bounded CHECK (length(actor) BETWEEN 1 AND 200), -- who made it
    created_at timestamptz NOT NULL DEFAULT mail.now(),
    expires_at timestamptz, -- null: never
    last_used_at timestamptz, -- by the hour
    revoked_at timestamptz,
    revoked_by text CONSTRAINT api_keys_revoked_by_bounded CHECK (length(revoked_by) BETWEEN 1 AND 200),
    CONSTRAINT api_keys_revoked_by_someone CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);

-- A wider list than the one it replaces: every row there is fits it, so that none need be looked at.
ALTER TABLE mail.deliveries
    DROP CONSTRAINT deliveries_source_known,
    ADD CONSTRAINT deliveries_source_known CHECK (
        source IN ('authsession', 'notification', 'api', 'send', 'sql', 'smtp', 'operator_resend', 'bounce')) NOT VALID;

-- What a sender is still to be told: recipients of one delivery who will not get it. A row leaves with its bounce.
CREATE TABLE mail.bounces_owed (
    id uuid PRIMARY KEY DEFAULT mail.new_id(),
    delivery_id uuid NOT NULL,
    -- In the order of the recipients: f refused, x suppressed, o given up; a dot for whom this is not about.
    failed text NOT NULL CONSTRAINT bounces_owed_for_someone CHECK (rtrim(failed, 'fxo.') = '' AND rtrim(failed, '.') <> ''),
    status text NOT NULL, -- of the delivery, then
    attempts smallint NOT NULL, -- that it had, then
    taken_at timestamptz -- by a replica that is working on it; free again when that takes too long
);

-- Written with the outcome itself, whichever statement brings it: nothing can forget a bounce, and no crash come between.
CREATE FUNCTION mail.owe_bounce() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before text := CASE WHEN TG_OP = 'UPDATE' THEN OLD.recipient_states ELSE repeat('o', length(NEW.recipient_states)) END;
    given_up boolean := NEW.status IN ('dead_letter', 'expired');
    failed text;
BEGIN
    SELECT string_agg(CASE WHEN was = 'o' AND (state IN ('f', 'x') OR state = 'o' AND given_up) THEN state ELSE '.' END,
                      '' ORDER BY place)
    INTO failed
    FROM unnest(string_to_array(before, NULL), string_to_array(NEW.recipient_states, NULL))
         WITH ORDINALITY AS t(was, state, place);
    IF rtrim(failed, '.') <> '' THEN
        INSERT INTO mail.bounces_owed (delivery_id, failed, status, attempts)
        VALUES (NEW.id, failed, NEW.status, NEW.attempts);
    END IF;
    RETURN NULL;
END $$;

-- A bounce owes none (RFC 5321 section 4.5.5), and of sensitive mail nothing is left to tell. Mail of other classes costs
-- a look at its class.
CREATE TRIGGER owe_bounce AFTER UPDATE OF status, recipient_states ON mail.deliveries FOR EACH ROW
WHEN (NEW.class = 'relay' AND NEW.source <> 'bounce' AND NOT NEW.sensitive
      AND (NEW.status IN ('dead_letter', 'expired') AND NEW.status <> OLD.status
           OR NEW.recipient_states <> OLD.recipient_states AND NEW.recipient_states ~ '[fx]'))
EXECUTE FUNCTION mail.owe_bounce();
-- At birth only the suppression list leaves recipients out for good; stub mode tells nobody anything.
CREATE TRIGGER owe_bounce_at_birth AFTER INSERT ON mail.deliveries FOR EACH ROW
WHEN (NEW.class = 'relay' AND NEW.last_rule = 'suppression_list' AND NEW.source <> 'bounce' AND NOT NEW.sensitive)
EXECUTE FUNCTION mail.owe_bounce();
