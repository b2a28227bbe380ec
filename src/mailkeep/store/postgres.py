"""The store: every statement of the queue behind one verb each.

A verb is one statement and one commit; none holds a transaction open across anything else. Verbs raise `StoreError`s
only. The verbs of the hot path (`accept`, `finish`) take batches; `GroupCommit` makes them.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias
from uuid import UUID

import asyncpg
import msgspec

from mailkeep.aside import LARGE_BYTES, aside
from mailkeep.core.delivery import DeliveryClass, DeliveryStatus, Guarantee, RecipientState, Source
from mailkeep.core.idempotency import address_hash
from mailkeep.core.ids import days_of, id_text
from mailkeep.core.outcome import Severity
from mailkeep.core.queue import (
    POISON_TAKEOVERS,
    SUSPECT_TAKEOVERS,
    Claim,
    ClaimKey,
    FinishedAttempt,
    HopOut,
    KeyHolder,
    NewDelivery,
    Suppressed,
)
from mailkeep.core.suppression import MAX_EVIDENCE_CHARS, USUAL_TTL_S
from mailkeep.store.columns import column
from mailkeep.store.connect import COMMAND_TIMEOUT_S, CONNECT_TIMEOUT_S, connect, is_pooled, set_up
from mailkeep.store.errors import (
    ROLLED_BACK,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    translated,
)
from mailkeep.store.migrate import Connection, migrate
from mailkeep.store.queries import query, query_between
from mailkeep.store.sealing import Content, PayloadKeys, PayloadKeysError, SealedError, sealed_by

ROLLBACK_WAITS_S: Final = (0.01, 0.05, 0.2)
"""Before a statement that PostgreSQL rolled back (deadlock, serialization) is run again: nothing of it was done."""
PREPARED: Final = 100
"""Statements that stay prepared on a connection: more than there are."""
ACQUIRE_TIMEOUT_S: Final = 10.0
INLINE_MESSAGE_BYTES: Final = LARGE_BYTES
"""Messages up to this size come with their claim; larger ones are loaded when their attempt begins."""
PARTITION_DAYS_BEHIND: Final = 1
PARTITION_DAYS_AHEAD: Final = 3
TAKEOVER_BATCH: Final = 1000
EXPIRE_BATCH: Final = 1000
Stored: TypeAlias = UUID | Suppressed | KeyHolder | StoreError
"""What became of a delivery that was to be stored: its id; what the suppression list left of it; who holds its key; why not."""
_NO_KEYS: Final = PayloadKeys()
_NONE_OUT: Final[Mapping[str, HopOut]] = {}
_NOTHING_DONE: Final[Mapping[str, int]] = {}

# The hot statements reach rows by index only. A plan made while the tables were empty would otherwise be kept, with
# its sequential scans, while they fill. Workers beside a statement would take the processors from what sends mail.
_PLANNER: Final = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
}


def _set_locally(settings: Mapping[str, str]) -> str:
    return "; ".join(f"SET LOCAL {name} = {value}" for name, value in settings.items())


_PLAN_LOCALLY: Final = _set_locally(_PLANNER)


class Store:
    """The queue in PostgreSQL. Open it with `Store.open`, close it with `close`.

    Behind a pooler each statement is a transaction that says so, since only within one its parts meet the same server:
    `locally` is what it says first.
    """

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        hash_key: bytes,
        *,
        locally: str = "",
        payload_keys: PayloadKeys = _NO_KEYS,
    ) -> None:
        self._pool = pool
        self._locally = locally
        self.hash_key = hash_key
        self.payload_keys = payload_keys

    @classmethod
    async def open(
        cls,
        dsn: str,
        *,
        pool_size: int = 8,
        application_name: str = "mailkeep",
        payload_keys: PayloadKeys = _NO_KEYS,
    ) -> "Store":
        """Connect, bring the schema up to date and return the store, which seals payloads by the newest of `payload_keys`.

        Raises `StoreUnavailableError` when PostgreSQL can't be reached, `MigrationError` when the schema can't be used.
        """
        with translated():
            deployment, pooled = await _bring_up_to_date(dsn)
            session = {"application_name": application_name, "timezone": "UTC"}
            pool = await asyncpg.create_pool(
                dsn,
                min_size=min(2, pool_size),
                max_size=pool_size,
                command_timeout=COMMAND_TIMEOUT_S,
                init=set_up,
                reset=_keep_as_it_is,
                timeout=CONNECT_TIMEOUT_S,
                server_settings=session if pooled else session | _PLANNER,
                statement_cache_size=0 if pooled else PREPARED,
            )
            store = cls(
                pool,
                deployment["hash_key"],
                locally=_PLAN_LOCALLY if pooled else "",
                payload_keys=payload_keys,
            )
            try:
                if deployment["makes_partitions"]:
                    await store.ensure_partitions()
            except BaseException:
                pool.terminate()
                raise
            return store

    @classmethod
    async def open_to_read(
        cls, dsn: str, *, statement_s: float, lock_s: float, application_name: str
    ) -> "Store":
        """Connect as it is, for verbs that only read; nothing is migrated, and PostgreSQL refuses whatever would write.

        A statement is given up after `statement_s`, and after `lock_s` of waiting for a lock. Raises `StoreUnavailableError`.
        """
        bounds = {
            "transaction_read_only": "on",
            "statement_timeout": f"{statement_s * 1000:.0f}",
            "lock_timeout": f"{lock_s * 1000:.0f}",
        }
        with translated(sent=False):
            pool = await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=1,
                command_timeout=2 * statement_s,
                init=set_up,
                reset=_keep_as_it_is,
                timeout=statement_s,
                server_settings={"application_name": application_name, "timezone": "UTC"},
                statement_cache_size=0,
            )
        return cls(pool, b"", locally=f"{_set_locally(bounds)}; {_PLAN_LOCALLY}")

    async def close(self, timeout_s: float = 5.0) -> None:
        """Close every connection; those still busy after `timeout_s` are cut."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection for reads; the driver's errors come out as `StoreError`s."""
        with translated():
            async with self._lent() as connection:
                yield connection

    async def fetch(self, name: str, *arguments: object) -> list[asyncpg.Record]:
        """Run the named statement and return its rows; one that PostgreSQL rolled back is repeated, a bounded number of times."""
        return await self._fetch(query(name), arguments)

    async def _fetch_of(self, name: str, ids: Iterable[UUID], *arguments: object) -> list[asyncpg.Record]:
        """Do the same with a statement that touches nothing but the days of `ids`."""
        return await self._fetch(query_between(name, *days_of(ids)), arguments)

    async def fetch_of_day(self, name: str, day: str, *arguments: object) -> list[asyncpg.Record]:
        """Do the same with one that touches nothing but its first argument, the `day` (YYYYMMDD)."""
        instant = datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC)
        return await self._fetch_of(name, [UUID(int=int(instant.timestamp() * 1000) << 80)], day, *arguments)

    async def _fetch(self, statement: str, arguments: Sequence[object]) -> list[asyncpg.Record]:
        with translated():
            for wait_s in ROLLBACK_WAITS_S:
                try:
                    return await self._once(statement, arguments)
                except ROLLED_BACK:
                    await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
            return await self._once(statement, arguments)

    async def _once(self, statement: str, arguments: Sequence[object]) -> list[asyncpg.Record]:
        async with self._lent() as connection:
            return await connection.fetch(statement, *arguments)

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[Connection]:
        with translated(sent=False):
            connection = await self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
        try:
            if self._locally:
                async with _pinned(connection, self._locally):
                    yield connection
            else:
                yield connection
        except (TimeoutError, asyncpg.ReadOnlySQLTransactionError):
            await self.renew_connections()
            raise
        finally:
            await self._pool.release(connection)

    async def renew_connections(self) -> None:
        """Make every connection anew before its next use: one that fell silent, or leads to a server that was demoted, speaks for all."""
        await self._pool.expire_connections()

    async def use_payload_keys(self) -> None:
        """Check that every key that payloads were sealed by is here, and note the one that seals from now on.

        Raises `PayloadKeysError` naming what is missing: mail that nobody can open would wait until its ladder ends.
        """
        used = await self.fetch("read_payload_keys")
        missing = [row["name"] for row in used if row["name"] not in self.payload_keys]
        if missing:
            raise PayloadKeysError(
                f"lacks the key {', '.join(missing)}, by which stored payloads are sealed; put it back, behind the newest"
            )
        for row in used:
            key = self.payload_keys.get(row["name"])
            if key is not None and key.mark != row["mark"]:
                raise PayloadKeysError(
                    f"has another key of the name {key.name} than the one that payloads are sealed by"
                )
        newest = self.payload_keys.newest
        if newest is not None:
            await self.fetch("use_payload_key", newest.name, newest.mark)

    # -- intake ------------------------------------------------------------------------------------------------

    async def accept(self, replica_id: UUID, batch: Sequence[NewDelivery]) -> list[Stored]:
        """Store a batch in one commit; answers for each, in order, what became of it.

        Raises `StoreUnavailableError` for the whole batch; with `in_doubt` ask `find_keys` before repeating.
        """
        ordered = sorted(batch, key=lambda new: (new.source, new.idempotency_key))
        try:
            if self.payload_keys.newest and any(new.size_bytes > LARGE_BYTES for new in batch):
                arguments = await aside(_accept_arguments, ordered, self.payload_keys)
            else:
                arguments = _accept_arguments(ordered, self.payload_keys)
            rows = await self.fetch("accept", replica_id, *arguments)
        except StoreRefusedError as fault:
            if len(batch) == 1:
                return [fault]
            # What PostgreSQL refuses of one entry must not take its neighbours with it.
            return [(await self.accept(replica_id, [new]))[0] for new in batch]
        stored = {row["id"]: row["recipient_states"] for row in rows}
        return await self._answers(batch, stored)

    async def accept_again(self, replica_id: UUID, batch: Sequence[NewDelivery]) -> list[Stored]:
        """Store what is not stored yet of a batch whose commit was in doubt; answers as `accept` does.

        Its keys tell what was stored, also where that commit is still under way: then its end is waited for. What was born
        claimed then, and still is, is answered as newly stored; the rest by the holder of its key.
        """
        answers = await self.accept(replica_id, batch)
        born = {
            row["id"]: row["recipient_states"]
            for row in await self.fetch("find_born", replica_id, [new.id for new in batch])
        }
        return [
            _born(new, born[new.id])
            if isinstance(answer, KeyHolder) and new.status is DeliveryStatus.SENDING and new.id in born
            else answer
            for new, answer in zip(batch, answers, strict=True)
        ]

    async def _answers(self, batch: Sequence[NewDelivery], stored: Mapping[UUID, str | None]) -> list[Stored]:
        if len(stored) == len(batch):
            return [_born(new, stored[new.id]) for new in batch]
        taken = [(new.source, new.idempotency_key) for new in batch if new.id not in stored]
        holders: dict[tuple[str, str], KeyHolder] = {}
        missing: StoreError = StoreUnavailableError(
            "the holder of the key is just being removed", in_doubt=False
        )
        try:
            holders = await self.find_keys(taken)
        except StoreUnavailableError as fault:
            missing = fault  # those that were stored are none the worse for it
        return [
            _born(new, stored[new.id])
            if new.id in stored
            else holders.get((new.source, new.idempotency_key), missing)
            for new in batch
        ]

    async def find_keys(self, keys: Sequence[tuple[Source, str]]) -> dict[tuple[str, str], KeyHolder]:
        """Return who holds each of the (source, key) pairs that are taken."""
        rows = await self.fetch("find_keys", [source for source, _ in keys], [key for _, key in keys])
        return {
            (row["source"], row["key"]): KeyHolder(
                row["fingerprint"], row["delivery_id"], DeliveryStatus(row["first_status"])
            )
            for row in rows
        }

    async def notify_due(self) -> None:
        """Wake the schedulers of every replica."""
        await self.fetch("notify_due")

    async def notify_probe(self) -> None:
        """Tell every replica to probe the next hops that are out at once."""
        await self.fetch("notify_probe")

    # -- dispatch ----------------------------------------------------------------------------------------------

    async def claim_due(
        self, replica_id: UUID, wanted: Sequence[tuple[str, DeliveryClass, int]], at_most: int
    ) -> list[Claim]:
        """Claim up to `bound` due deliveries for each (next hop, class, bound) of `wanted`, in its order, and `at_most` in all."""
        rows = await self.fetch(
            "claim_due",
            replica_id,
            [hop for hop, _, _ in wanted],
            [delivery_class for _, delivery_class, _ in wanted],
            [bound for _, _, bound in wanted],
            SUSPECT_TAKEOVERS,
            INLINE_MESSAGE_BYTES,
            at_most,
        )
        return [
            _claim(replica_id, row, self.payload_keys)
            for row in rows
            if row["status"] == DeliveryStatus.SENDING
        ]

    async def claim_suspect(self, replica_id: UUID, hops: Sequence[str]) -> Claim | None:
        """Claim one due delivery that has been taken over too often to be sent beside others."""
        rows = await self.fetch("claim_suspect", replica_id, list(hops), INLINE_MESSAGE_BYTES)
        return _claim(replica_id, rows[0], self.payload_keys) if rows else None

    async def suppress(self, claims: Sequence[Claim]) -> list[Suppressed]:
        """Leave out of `claims` whom the suppression list names by now; answers those it names somebody of.

        One with nobody left to send to has ended, its claim is gone.
        """
        recipients = [
            (claim.id, address_hash(address, self.hash_key), state)
            for claim in claims
            for address, state in zip(claim.recipients, claim.recipient_states, strict=bool(claim.recipients))
        ]
        ids = [claim.id for claim in claims]
        rows = await self._fetch_of(
            "suppress",
            ids,
            [claim.replica_id for claim in claims],
            ids,
            [claim.token for claim in claims],
            [delivery_id for delivery_id, _, _ in recipients],
            [digest for _, digest, _ in recipients],
            [state for _, _, state in recipients],
        )
        return [Suppressed(row["id"], DeliveryStatus(row["status"]), row["recipient_states"]) for row in rows]

    async def expire_due(self) -> int:
        """End waiting deliveries whose time ran out; answers how many."""
        return len(await self.fetch("expire_due", EXPIRE_BATCH))

    async def next_due_s(self, wanted: Sequence[tuple[str, DeliveryClass]], at_most_s: float) -> float | None:
        """Return the seconds until something of a (next hop, class) in `wanted` is due (0 if it is), None if nothing waits."""
        rows = await self.fetch(
            "next_due", [hop for hop, _ in wanted], at_most_s, [name for _, name in wanted]
        )
        wait_s: float | None = rows[0][0]
        return None if wait_s is None else max(wait_s, 0.0)

    async def load_message(self, delivery_id: UUID) -> bytes | None:
        """Return the message bytes of a delivery, or None if its payload is gone. Raises `SealedError`."""
        rows = await self.fetch("load_message", delivery_id)
        message: bytes | None = rows[0]["message"] if rows else None
        if message is None or sealed_by(message) is None:
            return message
        return await aside(self.payload_keys.open, delivery_id, Content.MESSAGE, message)

    async def finish(
        self, batch: Sequence[FinishedAttempt], suppression_ttl_s: float = USUAL_TTL_S
    ) -> dict[UUID, DeliveryStatus]:
        """Record finished attempts in one commit; answers the new status of each whose claim still held.

        Those of them that met a hard bounce suppress its address for `suppression_ttl_s`.
        """
        bounces = _json(list(_hard_bounces(batch, self.hash_key)))
        rows = await self._fetch_of(
            "finish",
            (finished.claim.id for finished in batch),
            *_finish_arguments(batch, self.payload_keys),
            bounces,
            suppression_ttl_s,
        )
        return {row["id"]: DeliveryStatus(row["status"]) for row in rows}

    async def mark_dot(self, claims: Sequence[ClaimKey]) -> set[UUID]:
        """Commit the intent to send the final dot; answers the ids whose claim still held."""
        return await self._fenced("mark_dot", claims)

    async def hand_back(self, claims: Sequence[ClaimKey]) -> set[UUID]:
        """Give claims back untouched; answers the ids whose claim still held."""
        return await self._fenced("hand_back", claims)

    async def _fenced(self, name: str, claims: Sequence[ClaimKey]) -> set[UUID]:
        ids = [claim.id for claim in claims]
        rows = await self._fetch_of(
            name,
            ids,
            [claim.replica_id for claim in claims],
            ids,
            [claim.token for claim in claims],
        )
        return {row["id"] for row in rows}

    async def own_claims(self, replica_id: UUID, older_than_s: float) -> dict[UUID, int]:
        """Return id -> token of the claims the table holds for this replica for longer than `older_than_s`."""
        rows = await self.fetch("own_claims", replica_id, older_than_s)
        return {row["id"]: row["claim_token"] for row in rows}

    # -- replicas ----------------------------------------------------------------------------------------------

    async def register_replica(
        self, replica_id: UUID, host: str, pid: int, version: str
    ) -> tuple[datetime, float]:
        """Make a replica known; answers the database's clock, and the seconds for which PostgreSQL has been up."""
        rows = await self.fetch("register_replica", replica_id, host, pid, version)
        return rows[0]["last_seen_at"], rows[0]["up_s"]

    async def beat(
        self,
        replica_id: UUID,
        in_flight: int,
        hops_out: Mapping[str, HopOut] = _NONE_OUT,
        totals: Mapping[str, int] = _NOTHING_DONE,
    ) -> datetime | None:
        """Say that a replica lives; answers the database's clock, or None when it was declared lost.

        `totals`: what it did since it began, by name.
        """
        rows = await self.fetch("beat", replica_id, in_flight, _json(hops_out), _json(totals))
        return rows[0]["last_seen_at"] if rows else None

    async def stop_replica(self, replica_id: UUID) -> None:
        """Say that a replica left in order; what it still claims is taken over at once."""
        await self.fetch("stop_replica", replica_id)

    async def mark_lost(self, ttl_s: float) -> list[UUID]:
        """Declare replicas lost that were silent for longer than `ttl_s`."""
        return [row["id"] for row in await self.fetch("mark_lost", ttl_s)]

    async def take_over(self) -> dict[UUID, DeliveryStatus]:
        """Take over a batch of claims of lost and stopped replicas; answers the new status of each."""
        rows = await self.fetch("take_over", TAKEOVER_BATCH, POISON_TAKEOVERS)
        return {row["id"]: DeliveryStatus(row["status"]) for row in rows}

    async def ensure_partitions(self, days_behind: int = PARTITION_DAYS_BEHIND) -> None:
        """Make the partitions of the days around now."""
        await self.fetch("ensure_partitions", days_behind, PARTITION_DAYS_AHEAD)


async def _bring_up_to_date(dsn: str) -> tuple[asyncpg.Record, bool]:
    """Migrate the schema; answers what `hash_key.sql` reads, and whether a pooler stands before the database."""
    connection = await connect(dsn)
    try:
        await migrate(connection)
        async with connection.transaction():
            (deployment,) = await connection.fetch(query("hash_key"))
        if deployment["makes_partitions"]:
            await connection.execute(query("catch_up_positions"))
        return deployment, await is_pooled(connection)
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)


@asynccontextmanager
async def _pinned(connection: Connection, locally: str) -> AsyncIterator[None]:
    async with connection.transaction():
        await connection.execute(locally)
        yield


async def _keep_as_it_is(_connection: object) -> None:
    # No statement here leaves anything behind in its session: the driver's reset would be a round trip for each of them.
    pass


def _claim(replica_id: UUID, row: asyncpg.Record, keys: PayloadKeys) -> Claim:
    delivery_id: UUID = row["id"]
    recipients: tuple[str, ...] = ()
    sender = message = command = unopened = None
    try:
        sender = row["sender"] and keys.open_text(delivery_id, Content.SENDER, row["sender"])
        recipients = tuple(
            keys.open_text(delivery_id, Content.RECIPIENT, address) for address in row["recipients"] or ()
        )
        message = row["message"] and keys.open(delivery_id, Content.MESSAGE, row["message"])
        command = row["command"] and keys.open(delivery_id, Content.COMMAND, row["command"])
    except SealedError as fault:
        unopened = str(fault)
    return Claim(
        replica_id=replica_id,
        id=delivery_id,
        token=row["claim_token"],
        source=row["source"],
        delivery_class=DeliveryClass(row["class"]),
        guarantee=Guarantee(row["guarantee"]),
        next_hop=row["next_hop"],
        attempts=row["attempts"],
        rungs_used=row["rungs_used"],
        recipient_states=row["recipient_states"],
        size_bytes=row["size_bytes"],
        sensitive=row["sensitive"],
        accepted_at=row["accepted_at"],
        expires_at=row["expires_at"],
        sender=sender,
        recipients=recipients,
        message=message,
        command=command,
        traceparent=row["traceparent"],
        unopened=unopened,
    )


def _accept_arguments(batch: Sequence[NewDelivery], keys: PayloadKeys) -> list[Any]:
    ids = [id_text(new.id) for new in batch]
    return [
        column(ids),
        column(new.source for new in batch),
        column(new.delivery_class for new in batch),
        column(new.guarantee for new in batch),
        column(new.status for new in batch),
        column(new.next_hop for new in batch),
        column(new.send_at for new in batch),
        column(new.expires_at for new in batch),
        column(_states_at_birth(new) for new in batch),
        column(new.recipient_domain for new in batch),
        column(new.size_bytes for new in batch),
        column(new.sensitive for new in batch),
        column(new.template_id for new in batch),
        column(new.catalog_version for new in batch),
        column(new.locale for new in batch),
        column(new.idempotency_key for new in batch),
        column(sealed_sender(new.id, new.sender, keys) or None for new in batch),
        column(sealed_recipients(new.id, new.recipients, keys) for new in batch),
        column(new.parent_id for new in batch),
        column(new.traceparent for new in batch),
        column(new.locale_chain for new in batch),
        [new.fingerprint for new in batch],
        [new.message and keys.seal(new.id, Content.MESSAGE, new.message) for new in batch],
        [new.command and keys.seal(new.id, Content.COMMAND, new.command) for new in batch],
        [new.supersede_hash for new in batch],
        column(name for name, new in zip(ids, batch, strict=True) for _ in new.recipient_hashes),
        [digest for new in batch for digest in new.recipient_hashes],
        column(name for name, new in zip(ids, batch, strict=True) for _ in new.named_hashes),
        [digest for new in batch for digest in new.named_hashes],
    ]


def sealed_recipients(delivery_id: UUID, recipients: Sequence[str], keys: PayloadKeys) -> str:
    """Return addresses as they are stored, one a line."""
    return "\n".join(keys.seal_text(delivery_id, Content.RECIPIENT, address) for address in recipients)


def sealed_sender(delivery_id: UUID, sender: str, keys: PayloadKeys) -> str:
    """Return a sender as it is stored; the null reverse-path stays empty."""
    return sender and keys.seal_text(delivery_id, Content.SENDER, sender)


def _born(new: NewDelivery, states: str | None) -> UUID | Suppressed:
    if states is None or new.status is DeliveryStatus.SUPPRESSED:
        return new.id
    status = new.status if RecipientState.OPEN in states else DeliveryStatus.SUPPRESSED
    return Suppressed(new.id, status, states)


def _states_at_birth(new: NewDelivery) -> str:
    state = RecipientState.SUPPRESSED if new.status is DeliveryStatus.SUPPRESSED else RecipientState.OPEN
    return state * len(new.recipients)


def _finish_arguments(batch: Sequence[FinishedAttempt], keys: PayloadKeys) -> list[Any]:
    claims = [finished.claim for finished in batch]
    outcomes = [finished.outcome for finished in batch]
    decisions = [finished.decision for finished in batch]
    rendered = [finished for finished in batch if finished.message is not None]
    return [
        column(id_text(claim.replica_id) for claim in claims),
        column(id_text(claim.id) for claim in claims),
        column(claim.token for claim in claims),
        column(decision.status for decision in decisions),
        column(decision.recipient_states for decision in decisions),
        column(decision.wait_s for decision in decisions),
        column(decision.uses_rung for decision in decisions),
        column(decision.dead_letter_cause for decision in decisions),
        column(outcome.status for outcome in outcomes),
        column(outcome.certainty for outcome in outcomes),
        column(outcome.phase for outcome in outcomes),
        column(outcome.severity for outcome in outcomes),
        column(outcome.scope for outcome in outcomes),
        column(outcome.rule for outcome in outcomes),
        column(outcome.code for outcome in outcomes),
        column(outcome.enhanced for outcome in outcomes),
        column(outcome.text or None for outcome in outcomes),
        column(outcome.duration_ms for outcome in outcomes),
        column(_recipients_json(finished) for finished in batch),
        column(_json(outcome.steps) if outcome.steps else None for outcome in outcomes),
        column(outcome.reason for outcome in outcomes),
        [finished.claim.id for finished in rendered],
        [
            finished.message and keys.seal(finished.claim.id, Content.MESSAGE, finished.message)
            for finished in rendered
        ],
    ]


class _HardBounce(msgspec.Struct, frozen=True):
    """A suppression to be, as the statement takes it; `address_hash` is hexadecimal."""

    id: UUID
    address_hash: str
    address: str
    evidence: str
    rule: str


def _hard_bounces(batch: Sequence[FinishedAttempt], hash_key: bytes) -> Iterator[_HardBounce]:
    for finished in batch:
        claim = finished.claim
        for recipient in finished.outcome.recipients:
            if recipient.is_hard_bounce:
                address = claim.recipients[recipient.ordinal]
                evidence = recipient.reason[:MAX_EVIDENCE_CHARS]
                digest = address_hash(address, hash_key).hex()
                yield _HardBounce(claim.id, digest, address, evidence, recipient.rule)


def _recipients_json(finished: FinishedAttempt) -> str | None:
    # One recipient that was accepted says no more than the attempt itself.
    recipients = finished.outcome.recipients
    if len(recipients) == 1 and recipients[0].severity is Severity.SUCCESS:
        return None
    return _json(recipients)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
