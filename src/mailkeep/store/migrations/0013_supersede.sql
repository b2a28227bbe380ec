-- Cancel what waits under the same supersede keys (`hashes`) as the deliveries `newer`, which are just being accepted.
-- waiting -> cancelled: mail.deliveries, mail.payloads. Answers how many.
-- Nearly always there is none, and one look at an index of each day (deliveries_superseding) says so: opening all these days to be
-- changed would cost each login code as much again as everything else that is stored of it.
CREATE FUNCTION mail.supersede(hashes bytea[], newer uuid[]) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    cancelled bigint;
BEGIN
    PERFORM FROM mail.deliveries
    WHERE supersede_hash = ANY (hashes) AND status IN ('queued', 'rendered') AND id <> ALL (newer)
    LIMIT 1;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    WITH older AS (
        -- Locked in the order of their ids, so that two batches that supersede the same ones cannot deadlock.
        SELECT id
        FROM mail.deliveries
        WHERE supersede_hash = ANY (hashes) AND status IN ('queued', 'rendered') AND id <> ALL (newer)
        ORDER BY id
        FOR UPDATE
    ), superseded AS (
        UPDATE mail.deliveries d
        SET status = 'cancelled', finished_at = mail.now(), due_at = NULL, last_reason = 'superseded by a newer one',
            last_rule = 'superseded'
        FROM older
        WHERE d.id = older.id AND d.status IN ('queued', 'rendered')
        RETURNING d.id, d.sensitive
    ), erased AS (
        DELETE FROM mail.payloads p USING superseded s WHERE p.delivery_id = s.id AND s.sensitive
    )
    SELECT count(*) INTO cancelled FROM superseded;
    RETURN cancelled;
END $$;
