-- Drop the partitions of day $1 of each table in $2; false while one of its deliveries is live or locks are held.
SELECT mail.drop_day($1::text, $2::text[])
