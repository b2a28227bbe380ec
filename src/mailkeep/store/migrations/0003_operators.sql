-- What people change by hand: who, when, why; written by the statement that makes the change. And what breakers do.

CREATE TABLE mail.operator_changes (
    id uuid PRIMARY KEY DEFAULT mail.new_id(),
    delivery_id uuid NOT NULL,
    verb text NOT NULL CONSTRAINT operator_changes_verb_known CHECK (
        verb IN ('hold', 'release', 'cancel', 'confirm', 'delete', 'resend')),
    status text NOT NULL, -- of the delivery, after the change
    actor text NOT NULL CONSTRAINT operator_changes_actor_bounded CHECK (length(actor) BETWEEN 1 AND 200),
    reason text NOT NULL CONSTRAINT operator_changes_reason_bounded CHECK (length(reason) BETWEEN 1 AND 500),
    changed_at timestamptz NOT NULL DEFAULT mail.now()
);
CREATE INDEX operator_changes_of_delivery ON mail.operator_changes (delivery_id);

-- What operators see of the breakers: for each next hop that is out for this replica, its cause and since when.
ALTER TABLE mail.replicas ADD COLUMN hops_out jsonb NOT NULL DEFAULT '{}';
