-- The days (YYYYMMDD) for which table $1 has a partition that lies wholly in the past (UTC).
SELECT right(c.relname, 8) AS day
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = ('mail.' || $1::text)::regclass
  AND right(c.relname, 8) < to_char(mail.now() AT TIME ZONE 'UTC', 'YYYYMMDD')
ORDER BY day
