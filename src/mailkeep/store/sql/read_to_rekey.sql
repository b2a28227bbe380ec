-- Read up to $2 payloads after the id $1 that are not sealed by the key $3, or as many as have $4 bytes together (one at
-- least). By the primary key.
WITH candidate AS (
    SELECT delivery_id, octet_length(coalesce(message, command)) AS size_bytes
    FROM mail.payloads
    WHERE delivery_id > $1::uuid
      AND substr(coalesce(message, command), 1, 2 + octet_length($3::bytea))
          <> '\x01'::bytea || set_byte('\x00'::bytea, 0, octet_length($3)) || $3
    ORDER BY delivery_id
    LIMIT $2::int
), fitting AS (
    SELECT delivery_id
    FROM (SELECT delivery_id, sum(size_bytes) OVER (ORDER BY delivery_id) - size_bytes AS before FROM candidate) summed
    WHERE before < $4::bigint
)
SELECT p.delivery_id, p.sender, p.recipients, p.message, p.command
FROM fitting f JOIN mail.payloads p USING (delivery_id)
ORDER BY p.delivery_id
