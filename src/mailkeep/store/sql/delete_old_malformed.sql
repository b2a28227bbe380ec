-- Delete up to $2 malformed commands rejected more than $1 seconds ago.
DELETE FROM mail.malformed_commands WHERE id IN (
    SELECT id FROM mail.malformed_commands
    WHERE rejected_at < mail.now() - $1::float8 * interval '1 second' LIMIT $2::int)
RETURNING id
