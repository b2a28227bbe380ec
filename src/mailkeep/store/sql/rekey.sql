-- Put newly sealed payloads in the place of those that were read: ids $1, recipients $2 (one a line), new message and command
-- $3 and $4, old ones $5 and $6; senders $7. One that changed meanwhile is left for the next time.
UPDATE mail.payloads p
SET recipients = string_to_array(i.recipients, E'\n'), sender = i.sender, message = i.message, command = i.command
FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[], $7::text[])
     AS i(delivery_id, recipients, message, command, old_message, old_command, sender)
WHERE p.delivery_id = i.delivery_id
  AND p.message IS NOT DISTINCT FROM i.old_message AND p.command IS NOT DISTINCT FROM i.old_command
RETURNING p.delivery_id
