"""The witness: what the store went through, noted by the store itself, and read into the ledger at the end.

A trigger notes every change of a delivery's status in the transaction that makes it: polling would miss what is undone in
between. Called on databases of drills and tests, never on one that anybody needs.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import asyncpg

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.drill.ledger import SENT, Attempt, Copy, Delivery, Ledger, Submission

WITNESS: Final = """
CREATE SCHEMA witness;
CREATE TABLE witness.moves (
    number bigserial PRIMARY KEY, delivery_id uuid NOT NULL, before text, after text NOT NULL,
    commit xid8 NOT NULL DEFAULT pg_current_xact_id(), by name NOT NULL DEFAULT session_user
);
CREATE FUNCTION witness.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO witness.moves (delivery_id, before, after)
    VALUES (NEW.id, CASE WHEN TG_OP = 'UPDATE' THEN OLD.status END, NEW.status);
    RETURN NULL;
END $$;
CREATE TRIGGER witness AFTER INSERT OR UPDATE ON mail.deliveries FOR EACH ROW EXECUTE FUNCTION witness.note();
"""

_ATTEMPTS: Final = (
    "SELECT delivery_id::text AS id, number, status, certainty FROM mail.attempts ORDER BY number"
)
_MOVES: Final = "SELECT delivery_id::text AS id, after FROM witness.moves WHERE before IS DISTINCT FROM after ORDER BY number"
_DELIVERIES: Final = (
    "SELECT id::text, status, recipient_states, attempts, guarantee, sensitive, class,"
    " CASE WHEN source = 'bounce' THEN parent_id::text END AS about_id FROM mail.deliveries"
)
_KEYS: Final = "SELECT key, delivery_id::text FROM mail.idempotency_keys"
_PAYLOADS: Final = "SELECT delivery_id::text FROM mail.payloads"
_DEAD_LETTERS: Final = "SELECT delivery_id::text FROM mail.dead_letters"


async def watch(connection: asyncpg.Connection) -> None:
    """Note every change of a delivery from now on. The schema of the queue must be there."""
    await connection.execute(WITNESS)


async def read_ledger(
    connection: asyncpg.Connection,
    submissions: Sequence[Submission],
    copies: Sequence[Copy],
    *,
    sender: str = "",
    ends: frozenset[DeliveryStatus] = SENT,
    rungs: int | None = None,
) -> Ledger:
    """Put what the store holds beside what the producer was answered and what the next hop took."""
    attempts = await _attempts(connection)
    history: defaultdict[str, list[str]] = defaultdict(list)
    for row in await connection.fetch(_MOVES):
        history[row["id"]].append(row["after"])
    return Ledger(
        submissions=tuple(submissions),
        sender=sender,
        deliveries={
            row["id"]: _delivery(row, attempts.get(row["id"], ()), history[row["id"]])
            for row in await connection.fetch(_DELIVERIES)
        },
        keys={row[0]: row[1] for row in await connection.fetch(_KEYS)},
        payloads=frozenset(row[0] for row in await connection.fetch(_PAYLOADS)),
        dead_letters=frozenset(row[0] for row in await connection.fetch(_DEAD_LETTERS)),
        copies=tuple(copies),
        ends=ends,
        rungs=rungs,
    )


async def _attempts(connection: asyncpg.Connection) -> Mapping[str, list[Attempt]]:
    found: defaultdict[str, list[Attempt]] = defaultdict(list)
    for row in await connection.fetch(_ATTEMPTS):
        found[row["id"]].append(Attempt(row["number"], row["status"], row["certainty"]))
    return found


def _delivery(row: asyncpg.Record, attempts: Sequence[Attempt], history: Sequence[str]) -> Delivery:
    return Delivery(
        row["id"],
        row["status"],
        row["recipient_states"],
        row["attempts"],
        tuple(attempts),
        tuple(history),
        row["guarantee"],
        row["sensitive"],
        row["class"],
        row["about_id"],
    )
