"""What the tests of the store and of dispatch share: deliveries to accept, attempts to record, and how the table looks."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from mailkeep.core.decide import decide
from mailkeep.core.delivery import (
    TERMINAL,
    AttemptStatus,
    Certainty,
    DeliveryClass,
    DeliveryStatus,
    Guarantee,
    RecipientState,
    Source,
)
from mailkeep.core.idempotency import address_hash
from mailkeep.core.ids import new_id
from mailkeep.core.outcome import Outcome, Phase, Scope, Severity, Verdict, uniform
from mailkeep.core.queue import Claim, FinishedAttempt, KeyHolder, NewDelivery, Suppressed
from mailkeep.store.postgres import Store
from mailkeep.store.queries import query

HOP: Final = "default"
LADDER_S: Final = (60.0, 300.0)
MESSAGE: Final = b"Subject: hello\r\n\r\nhello\r\n"
ANY: Final = [(HOP, delivery_class, 1000) for delivery_class in DeliveryClass]


async def now(store: Store) -> datetime:
    """Return the clock of the store."""
    instant: datetime = (await rows(store, "SELECT mail.now() AS now"))[0]["now"]
    return instant


async def fresh_id(store: Store) -> UUID:
    """Return a new id by the clock of the store."""
    return new_id((await now(store)).timestamp())


async def delivery(store: Store, **fields: Any) -> NewDelivery:
    """Build a delivery that may be accepted: transactional, rendered, for one recipient, under a key of its own."""
    delivery_id = fields.pop("id", None) or await fresh_id(store)
    recipients = fields.get("recipients", ("ann@example.org",))
    values: dict[str, Any] = {
        "source": Source.API,
        "delivery_class": DeliveryClass.TRANSACTIONAL,
        "guarantee": Guarantee.AT_LEAST_ONCE,
        "status": DeliveryStatus.RENDERED,
        "next_hop": HOP,
        "idempotency_key": str(delivery_id),
        "fingerprint": b"f" * 16,
        "sender": "mail@example.org",
        "recipients": recipients,
        "recipient_hashes": tuple(address_hash(address, store.hash_key) for address in recipients),
        "recipient_domain": "example.org",
        "message": MESSAGE,
        "sensitive": False,
    }
    return NewDelivery(id=delivery_id, **values | fields)


async def accepted(store: Store, replica_id: UUID | None = None, **fields: Any) -> UUID:
    """Accept one delivery and return its id."""
    new = await delivery(store, **fields)
    (answer,) = await store.accept(replica_id or await fresh_id(store), [new])
    assert not isinstance(answer, KeyHolder)
    return answer.id if isinstance(answer, Suppressed) else answer


async def replica(store: Store) -> UUID:
    """Register a replica and return its id."""
    replica_id = await fresh_id(store)
    await store.register_replica(replica_id, "host", 1, "1.0")
    return replica_id


async def claim_one(store: Store, replica_id: UUID | None = None, **fields: Any) -> Claim:
    """Accept one delivery, claim it for a replica, and return the claim."""
    delivery_id = await accepted(store, **fields)
    claims = await store.claim_due(replica_id or await replica(store), ANY, 1000)
    (claim,) = [claim for claim in claims if claim.id == delivery_id]
    return claim


def ending(
    claim: Claim,
    severity: Severity = Severity.SUCCESS,
    *,
    scope: Scope = Scope.MESSAGE,
    suppress: bool = False,
    text: str = "",
) -> Outcome:
    """Build the outcome of an attempt that went alike for every open recipient of `claim`."""
    status, certainty, phase = {
        Severity.SUCCESS: (AttemptStatus.PROVIDER_ACCEPTED, Certainty.DELIVERED, Phase.DOT),
        Severity.PERMANENT: (AttemptStatus.PROVIDER_REJECTED, Certainty.NOT_DELIVERED, Phase.RCPT),
        Severity.TRANSIENT: (AttemptStatus.TRANSPORT_FAILED, Certainty.NOT_DELIVERED, Phase.MAIL),
        Severity.UNKNOWN: (AttemptStatus.TIMED_OUT, Certainty.UNKNOWN, Phase.DOT),
    }[severity]
    return uniform(
        tuple(index for index, state in enumerate(claim.recipient_states) if state == RecipientState.OPEN),
        Verdict(severity, scope, "a_rule", suppress),
        status=status,
        certainty=certainty,
        phase=phase,
        text=text,
        duration_ms=12.5,
    )


def finished(
    claim: Claim, outcome: Outcome | None = None, *, ladder_s: tuple[float, ...] = LADDER_S
) -> FinishedAttempt:
    """Decide on `outcome` (by default a success) as a worker does, without jitter."""
    outcome = outcome or ending(claim)
    decision = decide(
        states=claim.recipient_states,
        outcome=outcome,
        guarantee=claim.guarantee,
        ladder_s=ladder_s,
        rungs_used=claim.rungs_used,
        park_s=1.0,
        chance=0.5,
    )
    return FinishedAttempt(claim, outcome, decision)


async def rows(store: Store, statement: str, *arguments: object) -> list[asyncpg.Record]:
    """Run a statement of a test's own."""
    async with store.connection() as connection:
        return await connection.fetch(statement, *arguments)


async def row(store: Store, delivery_id: UUID) -> asyncpg.Record:
    """Return the row of a delivery."""
    (found,) = await rows(store, "SELECT * FROM mail.deliveries WHERE id = $1", delivery_id)
    return found


async def status(store: Store, delivery_id: UUID) -> str:
    """Return the status of a delivery."""
    found: str = (await row(store, delivery_id))["status"]
    return found


async def payload(store: Store, delivery_id: UUID) -> asyncpg.Record | None:
    """Return the payload of a delivery, None where it was erased."""
    found = await rows(store, "SELECT * FROM mail.payloads WHERE delivery_id = $1", delivery_id)
    return found[0] if found else None


async def attempts(store: Store, delivery_id: UUID) -> list[asyncpg.Record]:
    """Return the attempts of a delivery in order."""
    return await rows(
        store, "SELECT * FROM mail.attempts WHERE delivery_id = $1 ORDER BY number", delivery_id
    )


async def snapshot(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table that a claim may change."""
    tables = ("deliveries", "payloads", "attempts", "dead_letters", "suppressions")
    return {
        table: [tuple(found) for found in await rows(store, f"SELECT * FROM mail.{table} ORDER BY 1, 2")]
        for table in tables
    }


async def shift_clock(store: Store, by: timedelta) -> None:
    """Move the clock of the store on, for every connection from now on."""
    (found,) = await rows(
        store,
        "SELECT current_database() AS name,"
        " coalesce(nullif(current_setting('mail.clock_offset', true), ''), '0')::interval AS shift",
    )
    shift = found["shift"] + by
    await rows(
        store, f"ALTER DATABASE {found['name']} SET mail.clock_offset = '{shift.total_seconds()} seconds'"
    )
    await store._pool.expire_connections()


async def lose(store: Store, replica_id: UUID) -> None:
    """Let one replica fall silent, and have it alone declared lost; in one commit, so that no beat comes between."""
    silence = timedelta(days=1000)
    silent = "UPDATE mail.replicas SET last_seen_at = last_seen_at - $2::interval WHERE id = $1"
    async with store.connection() as connection, connection.transaction():
        await connection.execute(silent, replica_id, silence)
        lost = await connection.fetch(query("mark_lost"), silence.total_seconds() - 1)
    assert [found["id"] for found in lost] == [replica_id]


async def blocked_backend(dsn: str, words: str = "") -> int:
    """Wait until a statement with `words` in it waits for a lock; answers its process id.

    On a connection of its own: inside a transaction PostgreSQL would show the same picture again and again.
    """
    waiting = (
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock' AND strpos(query, $1) > 0"
    )
    connection = await asyncpg.connect(dsn)
    try:
        while (pid := await connection.fetchval(waiting, words)) is None:
            await asyncio.sleep(0.01)
    finally:
        await connection.close()
    return int(pid)


async def check_accounts(store: Store, accepted_ids: Sequence[UUID]) -> None:
    """Check the accounting identity, and that dead letters and the status `dead_letter` are the same deliveries."""
    found = {
        found["id"]: found["status"] for found in await rows(store, "SELECT id, status FROM mail.deliveries")
    }
    assert found.keys() == set(accepted_ids)
    counted = Counter(DeliveryStatus(status) for status in found.values())
    ended = sum(counted[status] for status in TERMINAL)
    in_queue = sum(counted[status] for status in set(DeliveryStatus) - TERMINAL)
    assert len(set(accepted_ids)) == ended + in_queue
    letters = await rows(store, "SELECT delivery_id FROM mail.dead_letters")
    assert sorted(letter["delivery_id"] for letter in letters) == sorted(
        key for key, status in found.items() if status == DeliveryStatus.DEAD_LETTER
    )
