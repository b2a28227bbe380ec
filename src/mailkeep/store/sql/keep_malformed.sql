-- Keep a batch of malformed commands, each entry once however often it comes.
INSERT INTO mail.malformed_commands (id, intake, entry_id, failure_code, field, message, delivery_id, source, raw, cut)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                     $9::bytea[], $10::bool[])
ON CONFLICT (intake, entry_id) DO NOTHING
RETURNING id
