-- Where a reader begins who wants the last $1 events: after the one before them; after nothing, if there are no more.
SELECT coalesce(min(position), 0) AS position, coalesce((array_agg(id ORDER BY position, id))[1], 0) AS id
FROM (SELECT position, id FROM mail.events WHERE position < (SELECT mail.event_horizon())
      ORDER BY position DESC, id DESC OFFSET $1::int LIMIT 1) AS before
