-- Remove commands from the inbox: each is a delivery, a duplicate or a malformed record now.
DELETE FROM mail.enqueued WHERE id = ANY ($1::uuid[])
