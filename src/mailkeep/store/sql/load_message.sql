-- Read the message of one claimed delivery that was too large to come with its claim.
SELECT message FROM mail.payloads WHERE delivery_id = $1
