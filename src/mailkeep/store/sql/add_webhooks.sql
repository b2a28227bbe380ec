-- Make the webhooks of these names known; a new one begins with what happens from now on.
INSERT INTO mail.webhooks (name, position, event_id)
SELECT name, mail.event_horizon(), 0 FROM unnest($1::text[]) AS t(name) ORDER BY name
ON CONFLICT DO NOTHING
RETURNING name
