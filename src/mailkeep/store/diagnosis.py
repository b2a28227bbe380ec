"""What the doctor reads of PostgreSQL: bounded statements over a connection that changes nothing.

Each looks at a bounded number of rows, of a recent window, and ends within `STATEMENT_S`; none waits for a lock for longer
than `LOCK_S`. Opening does not migrate: a database that is behind is a finding. Called by `mailkeep.doctor`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from mailkeep.core.outcome import Step
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.migrate import migrations, schema_version
from mailkeep.store.postgres import Store
from mailkeep.store.queries import query
from mailkeep.store.reads import StoredReplica, replica_of

STATEMENT_S: Final = 2.0
LOCK_S: Final = 0.5
COUNTED_ROWS: Final = 50_000
"""Waiting rows counted of one next hop and class: some 20 ms; more are told as "at least"."""
SCANNED_ROWS: Final = 20_000
"""Deliveries and attempts of the window that are looked at, the newest ones: some 100 ms."""
DIALOGS: Final = 300
"""Dialogs that are read whole, a few kB each."""
RAW_BYTES: Final = 16 * 1024
HOLDERS: Final = 5
"""Of locks or of snapshots: the oldest are at the bottom of what the others do."""
REPLICAS: Final = 200


class Server(msgspec.Struct, frozen=True):
    """The server itself. `version` is the newest migration there, None without a schema; `wanted` this build's."""

    standby: bool
    connections: int
    max_connections: int
    has_schema: bool
    has_due_index: bool
    version: int | None = None
    wanted: int = 0


class LockHolder(msgspec.Struct, frozen=True):
    """A transaction of somebody that holds locks on the queue's tables for `held_s`, and how many statements wait for it."""

    pid: int
    application_name: str
    state: str | None
    held_s: float
    strong: bool
    tables: tuple[str, ...]
    waiting: int


class SnapshotHolder(msgspec.Struct, frozen=True):
    """Who keeps vacuum from taking dead rows away: `transactions` began since, `held_s` is None where PostgreSQL does not tell.

    `kind` is `backend`, `standby` (by hot_standby_feedback), `prepared transaction` or `replication slot`; `name` its pid or name.
    """

    kind: str
    name: str
    application_name: str
    state: str | None
    held_s: float | None
    transactions: int


class Lane(msgspec.Struct, frozen=True, rename={"delivery_class": "class"}):
    """Live mail of one next hop and class. `oldest_s`: how long the one due longest has been due; counts end at `COUNTED_ROWS`."""

    next_hop: str
    delivery_class: str
    waiting: int
    due: int
    oldest_s: float
    sending: int
    claimed_s: float


class Inbox(msgspec.Struct, frozen=True):
    """Commands of `mail.enqueue` that wait to be taken, the first of them for `oldest_s`."""

    waiting: int
    oldest_s: float


class EndedGroup(msgspec.Struct, frozen=True, rename={"delivery_class": "class"}):
    """Deliveries of the window that stand alike. `listed`: which reason of the suppression list left a recipient out."""

    status: str
    next_hop: str
    source: str
    delivery_class: str
    rule: str | None
    listed: str | None
    tried: bool
    count: int
    example: UUID
    reason: str | None
    last_minute: int


class AttemptGroup(msgspec.Struct, frozen=True):
    """Attempts of the window that ended alike, the last of them `last_s` ago; they took `mean_s`."""

    next_hop: str
    status: str
    phase: str | None
    severity: str | None
    scope: str | None
    rule: str | None
    count: int
    last_s: float
    mean_s: float
    reply: str
    example: UUID


class Dialog(msgspec.Struct, frozen=True):
    """The steps of one attempt."""

    next_hop: str
    status: str
    phase: str | None
    steps: tuple[Step, ...]


class DeadLetterGroup(msgspec.Struct, frozen=True):
    """Dead letters of the window whose last attempts ended alike."""

    cause: str
    next_hop: str
    status: str | None
    phase: str | None
    rule: str | None
    count: int
    last_s: float
    reason: str
    example: UUID


class MalformedGroup(msgspec.Struct, frozen=True):
    """Malformed commands of one producer that failed alike; `raw` is one of them, if it is small."""

    intake: str
    source: str | None
    failure_code: str
    field: str
    message: str
    count: int
    last_s: float
    raw: bytes | None


class Diagnosis:
    """The reads. All verbs raise `StoreUnavailableError` only; `since_s` is the length of the window."""

    def __init__(self, store: Store, since_s: float) -> None:
        self._store = store
        self._since_s = since_s

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, since_s: float) -> AsyncIterator["Diagnosis"]:
        """Connect, for reading only."""
        store = await Store.open_to_read(
            dsn, statement_s=STATEMENT_S, lock_s=LOCK_S, application_name="mailkeep doctor"
        )
        try:
            yield cls(store, since_s)
        finally:
            await store.close(STATEMENT_S)

    async def server(self) -> Server:
        """Return what the server says of itself."""
        (row,) = await self._fetch("diagnose_server")
        found = msgspec.convert(dict(row), Server)
        wanted = migrations()[-1].version
        version = None
        if found.has_schema:
            async with self._store.connection() as connection:
                version = await schema_version(connection)
        return msgspec.structs.replace(found, version=version, wanted=wanted)

    async def lock_holders(self) -> tuple[LockHolder, ...]:
        """Return who holds locks on the queue's tables, the longest first."""
        return await self._all("diagnose_locks", LockHolder, HOLDERS)

    async def snapshot_holders(self) -> tuple[SnapshotHolder, ...]:
        """Return who holds snapshots or transactions open, the oldest first."""
        return await self._all("diagnose_snapshots", SnapshotHolder, HOLDERS)

    async def replicas(self) -> tuple[StoredReplica, ...]:
        """Return the replicas, the newest first."""
        return tuple(replica_of(row) for row in await self._fetch("read_replicas", REPLICAS))

    async def lanes(self) -> tuple[Lane, ...]:
        """Return what waits and is being sent."""
        return await self._all("diagnose_lanes", Lane, COUNTED_ROWS)

    async def inbox(self) -> Inbox:
        """Return what waits to be taken."""
        (row,) = await self._fetch("diagnose_inbox", COUNTED_ROWS)
        first: UUID | None = row["first_id"]
        oldest_s = max(row["now_s"] - (first.int >> 80) / 1000, 0.0) if first else 0.0  # RFC 9562 section 5.7
        return Inbox(row["waiting"], oldest_s)

    async def look_at_due(self) -> None:
        """Look through the index of due mail as a scheduler does, to see how long that takes."""
        await self._fetch("read_waiting_hops")

    async def ended(self) -> tuple[EndedGroup, ...]:
        """Return what became of what was accepted in the window."""
        return await self._all("diagnose_ended", EndedGroup, self._since_s, SCANNED_ROWS)

    async def attempts(self) -> tuple[AttemptGroup, ...]:
        """Return how the attempts of the window ended."""
        return await self._all("diagnose_attempts", AttemptGroup, self._since_s, SCANNED_ROWS)

    async def dialogs(self) -> tuple[Dialog, ...]:
        """Return the newest dialogs of the window."""
        rows = await self._fetch("diagnose_steps", self._since_s, DIALOGS)
        return tuple(
            Dialog(
                row["next_hop"],
                row["status"],
                row["phase"],
                msgspec.json.decode(row["steps"], type=tuple[Step, ...]),
            )
            for row in rows
        )

    async def dead_letters(self) -> tuple[DeadLetterGroup, ...]:
        """Return the dead letters of the window."""
        return await self._all("diagnose_dead_letters", DeadLetterGroup, self._since_s, SCANNED_ROWS)

    async def malformed(self) -> tuple[MalformedGroup, ...]:
        """Return the malformed commands of the window that were not replayed."""
        return await self._all("diagnose_malformed", MalformedGroup, self._since_s, SCANNED_ROWS, RAW_BYTES)

    async def _all(self, name: str, kind: type[Any], *arguments: object) -> tuple[Any, ...]:
        return tuple(msgspec.convert(dict(row), kind) for row in await self._fetch(name, *arguments))

    async def _fetch(self, name: str, *arguments: object) -> list[asyncpg.Record]:
        try:
            # Once: what stands in the way of a statement is just what is to be told.
            async with self._store.connection() as connection:
                return await connection.fetch(query(name), *arguments)
        except asyncpg.SyntaxOrAccessError as fault:  # a schema of another build, or rights that are missing
            raise StoreUnavailableError(f"PostgreSQL: {fault}", in_doubt=False) from fault
