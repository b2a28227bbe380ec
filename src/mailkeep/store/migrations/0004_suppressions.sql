-- Addresses that get no mail: why, on what evidence, until when. And whom a delivery left out because of that.

CREATE TABLE mail.suppressions (
    -- As in mail.recipients: keyed, of the address in lower case. What intake and claims look up.
    address_hash bytea PRIMARY KEY CONSTRAINT suppressions_hash_is_12_bytes CHECK (octet_length(address_hash) = 12),
    id uuid NOT NULL DEFAULT mail.new_id() CONSTRAINT suppressions_id_once UNIQUE, -- by which operators name it
    address text NOT NULL CONSTRAINT suppressions_address_bounded CHECK (length(address) BETWEEN 3 AND 254),
    reason text NOT NULL CONSTRAINT suppressions_reason_known CHECK (reason IN ('hard_bounce', 'complaint', 'manual')),
    -- The reply of a mail server, addresses masked, or what a person noted.
    evidence text NOT NULL CONSTRAINT suppressions_evidence_bounded CHECK (length(evidence) BETWEEN 1 AND 500),
    rule text, -- with delivery_id and attempt: of the attempt that made it
    delivery_id uuid,
    attempt smallint,
    actor text CONSTRAINT suppressions_actor_bounded CHECK (length(actor) BETWEEN 1 AND 200), -- who made it by hand
    created_at timestamptz NOT NULL DEFAULT mail.now(),
    expires_at timestamptz, -- null: never
    CONSTRAINT suppressions_by_attempt_or_by_hand CHECK (
        (actor IS NULL) = (delivery_id IS NOT NULL) AND (actor IS NULL) = (rule IS NOT NULL)
        AND (actor IS NULL) = (attempt IS NOT NULL))
);
CREATE INDEX suppressions_expiring ON mail.suppressions (expires_at) WHERE expires_at IS NOT NULL;

-- For each recipient in order, why the suppression list left it out; null where it left out nobody.
ALTER TABLE mail.deliveries ADD COLUMN suppressed_because text[];

-- A change by hand is about a delivery or about an address; an address stands here as its hash only.
ALTER TABLE mail.operator_changes
    ALTER COLUMN delivery_id DROP NOT NULL,
    ALTER COLUMN status DROP NOT NULL,
    ADD COLUMN address_hash bytea,
    DROP CONSTRAINT operator_changes_verb_known,
    ADD CONSTRAINT operator_changes_verb_known CHECK (
        verb IN ('hold', 'release', 'cancel', 'confirm', 'delete', 'resend', 'suppress', 'unsuppress')),
    ADD CONSTRAINT operator_changes_about_one CHECK (
        (address_hash IS NOT NULL) = (verb IN ('suppress', 'unsuppress'))
        AND (delivery_id IS NULL) = (address_hash IS NOT NULL) AND (status IS NULL) = (address_hash IS NOT NULL));
CREATE INDEX operator_changes_of_address ON mail.operator_changes (address_hash) WHERE address_hash IS NOT NULL;
