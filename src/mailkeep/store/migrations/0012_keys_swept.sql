-- When keys of deliveries that are gone were last looked for: the whole table is read for it, once a day.
ALTER TABLE mail.deployment ADD COLUMN keys_swept_on date NOT NULL DEFAULT '-infinity';
