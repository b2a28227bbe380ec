-- Wake the schedulers of every replica: something became due.
SELECT pg_notify('mail_due', '')
