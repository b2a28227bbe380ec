-- A flush is a change by hand, too: recorded for each delivery that it made due, by the statement that did.

ALTER TABLE mail.operator_changes
    DROP CONSTRAINT operator_changes_verb_known,
    ADD CONSTRAINT operator_changes_verb_known CHECK (
        verb IN ('hold', 'release', 'cancel', 'confirm', 'delete', 'resend', 'flush', 'suppress', 'unsuppress'));
