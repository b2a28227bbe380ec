-- Move delivery $2 by hand, as `verb` $1 says, and record who ($3) did it and why ($4); by the primary key.
-- hold: waiting -> held. release: held -> waiting, due now; what was never tried keeps its time. cancel: waiting or held ->
-- cancelled. confirm: held -> sent, or what else its settled recipients make it. delete: waiting or held -> cancelled, and
-- whatever has ended stays so; in each case its content is erased now. One under at_most_once whose dot may have left is
-- never released: that could be a second copy. No row where it stands elsewhere; a claimed one is passed over, its replica
-- ends it.
WITH changed AS (
    UPDATE mail.deliveries d
    SET status = CASE $1::text
            WHEN 'hold' THEN 'held'
            WHEN 'cancel' THEN 'cancelled'
            WHEN 'delete' THEN CASE WHEN d.finished_at IS NULL THEN 'cancelled' ELSE d.status END
            WHEN 'release' THEN
                CASE WHEN EXISTS (SELECT FROM mail.payloads p WHERE p.delivery_id = d.id AND p.message IS NULL)
                     THEN 'queued' ELSE 'rendered' END
            WHEN 'confirm' THEN
                CASE WHEN strpos(d.recipient_states, 'f') > 0 THEN 'failed'
                     WHEN strpos(d.recipient_states, 'x') > 0 THEN 'suppressed' ELSE 'sent' END
        END,
        recipient_states = CASE WHEN $1 = 'confirm' THEN translate(d.recipient_states, 'o', 's') ELSE d.recipient_states END,
        due_at = CASE $1
            WHEN 'hold' THEN d.due_at
            WHEN 'release' THEN CASE WHEN d.attempts = 0 THEN greatest(d.due_at, mail.now()) ELSE mail.now() END
        END,
        finished_at = CASE WHEN $1 IN ('cancel', 'confirm', 'delete') THEN coalesce(d.finished_at, mail.now()) END,
        last_reason = CASE WHEN $1 IN ('hold', 'cancel', 'delete') AND d.finished_at IS NULL THEN $4::text ELSE d.last_reason END,
        last_rule = CASE WHEN $1 IN ('hold', 'cancel', 'delete') AND d.finished_at IS NULL THEN 'operator' ELSE d.last_rule END
    WHERE d.id = $2::uuid
      AND (($1 IN ('hold', 'cancel') AND d.status IN ('queued', 'rendered'))
        OR ($1 IN ('cancel', 'confirm') AND d.status = 'held')
        OR ($1 = 'delete' AND d.status <> 'sending')
        OR ($1 = 'release' AND d.status = 'held' AND d.dot_at IS NULL))
    RETURNING d.id, d.status, d.sensitive
), recorded AS (
    INSERT INTO mail.operator_changes (delivery_id, verb, status, actor, reason)
    SELECT id, $1, status, $3::text, $4 FROM changed
), erased AS (
    DELETE FROM mail.payloads p USING changed c
    WHERE p.delivery_id = c.id AND ($1 = 'delete' OR c.sensitive AND c.status NOT IN ('queued', 'rendered', 'held'))
)
SELECT status FROM changed
