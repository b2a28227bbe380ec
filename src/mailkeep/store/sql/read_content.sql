-- Read the message of delivery $1 for a person to look at: never that of a login code or of anything sensitive, and none of
-- more than $2 bytes. Takes no lock; by the primary keys.
SELECT d.sensitive OR d.class = 'auth' AS withheld, p.delivery_id IS NOT NULL AS kept, octet_length(p.message) AS size_bytes,
       CASE WHEN NOT d.sensitive AND d.class <> 'auth' AND octet_length(p.message) <= $2::int THEN p.message END AS message
FROM mail.deliveries d LEFT JOIN mail.payloads p ON p.delivery_id = d.id
WHERE d.id = $1::uuid
