-- Delete up to $1 suppressions that have expired, by the index suppressions_expiring; one that is just renewed is let be.
DELETE FROM mail.suppressions WHERE address_hash IN (
    SELECT address_hash FROM mail.suppressions WHERE expires_at <= mail.now()
    ORDER BY expires_at LIMIT $1::int FOR UPDATE SKIP LOCKED)
RETURNING id
