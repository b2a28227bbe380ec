-- What each replica did since it began, told with its heartbeat, so that the throughput of all of them can be shown:
-- deliveries `accepted`, and attempts by status.
ALTER TABLE mail.replicas ADD COLUMN totals jsonb NOT NULL DEFAULT '{}';
