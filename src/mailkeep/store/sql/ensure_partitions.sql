-- Make the partitions from $1 days before to $2 days after now (UTC). Serialised by an advisory lock.
SELECT mail.ensure_partitions((mail.now() AT TIME ZONE 'UTC')::date - $1::int,
                              (mail.now() AT TIME ZONE 'UTC')::date + $2::int)
