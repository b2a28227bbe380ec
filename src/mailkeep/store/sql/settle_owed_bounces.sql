-- Drop bounces $1 that are owed no more: they are on their way, or can't be.
DELETE FROM mail.bounces_owed WHERE id = ANY ($1::uuid[])
