-- Whom the content of a delivery names beside its recipients: its sender, where to reply, whom a bounce is about. An erasure
-- finds them as it finds recipients; lists by recipient pass them over.
ALTER TABLE mail.recipients ADD COLUMN addressed boolean NOT NULL DEFAULT true;
