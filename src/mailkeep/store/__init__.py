"""Where mail is kept: PostgreSQL is the queue. Statements are in `sql/`, schema steps in `migrations/`."""
