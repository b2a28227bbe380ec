-- Erase the suppression of the address hash $1: its words only where $2, so that the address still gets no mail; else all of it
-- and what is recorded of it.
WITH blanked AS (
    UPDATE mail.suppressions SET address = 'erased', evidence = 'erased on request' WHERE address_hash = $1::bytea AND $2::bool
    RETURNING id
), removed AS (
    DELETE FROM mail.suppressions WHERE address_hash = $1 AND NOT $2 RETURNING id
), forgotten AS (
    DELETE FROM mail.operator_changes WHERE address_hash = $1 AND NOT $2
)
SELECT id FROM blanked UNION ALL SELECT id FROM removed
