-- Count what is stored by the key that sealed it (null: by none). Reads the beginning of every payload and malformed command.
SELECT CASE WHEN get_byte(head, 0) = 1 THEN convert_from(substr(head, 3, get_byte(head, 1)), 'UTF8') END AS name, count(*)
FROM (
    SELECT substr(coalesce(message, command), 1, 40) AS head FROM mail.payloads
    UNION ALL
    SELECT substr(raw, 1, 40) FROM mail.malformed_commands
) AS stored
GROUP BY 1
