-- What the doctor and an explanation ask for: the dead letters of the last hour, and how a locale was found.

CREATE INDEX dead_letters_buried_at ON mail.dead_letters (buried_at);

-- The locales that were tried, in order, separated by spaces; null where the one asked for was there.
ALTER TABLE mail.deliveries ADD COLUMN locale_chain text;
