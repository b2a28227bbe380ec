-- Tell every replica to probe the next hops that are out at once.
SELECT pg_notify('mail_probe', '')
