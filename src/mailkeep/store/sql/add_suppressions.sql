-- Put addresses on the suppression list by hand, and record that $6 did it. Those of a row without an expires_at last $7
-- seconds, or for ever where that is null. One that lasts as long already stays as it is; what has expired is left out.
-- In the order of the hashes, so that nobody who does the same can deadlock. Answers those that are new or last longer.
WITH input AS (
    SELECT DISTINCT ON (address_hash) *
    FROM (SELECT address_hash, address, reason, evidence,
                 coalesce(expires_at, mail.now() + $7::float8 * interval '1 second') AS expires_at
          FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
              AS t(address_hash, address, reason, evidence, expires_at)) AS given
    WHERE expires_at IS NULL OR expires_at > mail.now()
    ORDER BY address_hash, expires_at DESC NULLS FIRST
), added AS (
    INSERT INTO mail.suppressions AS s (address_hash, address, reason, evidence, expires_at, actor)
    SELECT address_hash, address, reason, evidence, expires_at, $6::text FROM input
    ON CONFLICT (address_hash) DO UPDATE
    SET address = excluded.address, reason = excluded.reason, evidence = excluded.evidence, rule = NULL,
        delivery_id = NULL, attempt = NULL, actor = excluded.actor, expires_at = excluded.expires_at,
        created_at = CASE WHEN s.expires_at <= mail.now() THEN mail.now() ELSE s.created_at END
    WHERE s.expires_at < coalesce(excluded.expires_at, 'infinity')
    RETURNING s.address_hash, s.evidence
), recorded AS (
    INSERT INTO mail.operator_changes (address_hash, verb, actor, reason)
    SELECT address_hash, 'suppress', $6, evidence FROM added
)
SELECT address_hash FROM added
