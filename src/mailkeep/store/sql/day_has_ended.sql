-- Whether day $1 is over and each of its deliveries ended more than $2 seconds ago.
SELECT to_date($1::text, 'YYYYMMDD') + 1 < (mail.now() - $2::float8 * interval '1 second') AT TIME ZONE 'UTC'
   AND NOT EXISTS (
        SELECT FROM mail.deliveries
        WHERE id >= mail.uuid_floor(to_date($1, 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC')
          AND id < mail.uuid_floor((to_date($1, 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC')
          AND (finished_at IS NULL OR finished_at >= mail.now() - $2 * interval '1 second'))
