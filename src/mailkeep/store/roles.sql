-- Least-privilege roles for Mailkeep's schema. Run it as the role that owns the schema `mail` (the one that runs `mailkeep
-- migrate`), after each `mailkeep migrate` of a new version: it may run any number of times.
--
--   mailkeep_service   for `mailkeep serve` and its commands: reads and writes rows, changes no table
--   mailkeep_reader    for people who look: the queue, its history and accounts, who holds keys; no content, no secrets, no changes
--   mailkeep_producer  for programs that call mail.enqueue in their own transactions: that one function
--
-- None of them can log in. Grant one to a login of yours: GRANT mailkeep_service TO "your_service";

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['mailkeep_service', 'mailkeep_reader', 'mailkeep_producer'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
END $$;

REVOKE ALL ON SCHEMA mail FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA mail FROM PUBLIC, mailkeep_service, mailkeep_reader, mailkeep_producer;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA mail FROM PUBLIC, mailkeep_service, mailkeep_reader, mailkeep_producer;
GRANT USAGE ON SCHEMA mail TO mailkeep_service, mailkeep_reader, mailkeep_producer;

-- The service. Partitions are reached through their parents, and made and dropped by functions that do nothing else.
GRANT SELECT ON mail.schema_migrations, mail.deployment TO mailkeep_service;
GRANT UPDATE (keys_swept_on) ON mail.deployment TO mailkeep_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    mail.deliveries, mail.recipients, mail.payloads, mail.attempts, mail.dead_letters, mail.idempotency_keys, mail.replicas,
    mail.enqueued, mail.malformed_commands, mail.operator_changes, mail.suppressions, mail.payload_keys,
    mail.api_keys, mail.bounces_owed, mail.events, mail.webhooks, mail.webhook_retries
    TO mailkeep_service;
GRANT USAGE ON SEQUENCE mail.event_ids TO mailkeep_service;
GRANT SELECT, INSERT, UPDATE ON mail.erasures TO mailkeep_service;
GRANT EXECUTE ON FUNCTION
    mail.now(), mail.new_id(), mail.uuid_floor(timestamptz), mail.event_position(), mail.event_horizon(),
    mail.ensure_partitions(date, date), mail.drop_day(text, text[]), mail.catch_up_positions(),
    mail.supersede(bytea[], uuid[])
    TO mailkeep_service;

-- Who looks. The hash key is what a recipient is looked up by; without it hashes could not be made, nor guesses tested.
GRANT SELECT ON
    mail.schema_migrations, mail.deployment, mail.deliveries, mail.recipients, mail.attempts, mail.dead_letters,
    mail.replicas, mail.operator_changes, mail.suppressions, mail.payload_keys, mail.erasures, mail.events, mail.webhooks,
    mail.webhook_retries
    TO mailkeep_reader;
GRANT SELECT ON mail.bounces_owed TO mailkeep_reader;
GRANT SELECT (id, name, senders, actor, created_at, expires_at, last_used_at, revoked_at, revoked_by) ON mail.api_keys
    TO mailkeep_reader;
GRANT SELECT (delivery_id, recipients) ON mail.payloads TO mailkeep_reader;
GRANT SELECT (source, key, delivery_id, first_status, reserved_at) ON mail.idempotency_keys TO mailkeep_reader;
GRANT SELECT (id, delivery_id, source, size_bytes, replay_of, taken_at) ON mail.enqueued TO mailkeep_reader;
GRANT SELECT (id, intake, entry_id, failure_code, field, message, delivery_id, source, cut, rejected_at, replayed_at,
              replayed_as, replay_refusal) ON mail.malformed_commands TO mailkeep_reader;
GRANT EXECUTE ON FUNCTION mail.now(), mail.uuid_floor(timestamptz), mail.event_horizon() TO mailkeep_reader;

-- Producers. mail.enqueue runs with its owner's rights; nothing else of the schema is theirs.
GRANT EXECUTE ON FUNCTION mail.enqueue(jsonb) TO mailkeep_producer;
