"""What operators read and flush: bounded statements over the queue, each by an index, none of which locks a claim out.

A page looks at a bounded number of rows, however many there are and whatever the filter asks: it may come back short, even
empty, with a cursor to go on from. Addresses come out in clear; whoever shows them masks them. Called by
`mailkeep.operator`.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

import asyncpg
import msgspec

from mailkeep.core.delivery import WAITING, AttemptStatus, DeliveryClass, DeliveryStatus, Source
from mailkeep.core.ids import FIRST_ID, LAST_ID
from mailkeep.core.outcome import RecipientOutcome, Step
from mailkeep.core.queue import HopOut
from mailkeep.store.postgres import Store
from mailkeep.store.sealing import Content, PayloadKeys, SealedError

SCANNED_ROWS: Final = 5000
"""Rows one filtered page looks at: about 30 ms of PostgreSQL."""
ATTEMPTS_READ: Final = 200
"""Attempts shown of one delivery, the last ones; a long outage of its next hop can make thousands."""
CHANGES_READ: Final = 20
"""Changes by hand shown of one delivery, the last ones."""
REPLICAS_READ: Final = 500
"""Replicas shown, the newest ones; retention forgets those that are gone for a day."""
SHAPE_BOUNDS_MIN: Final = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0)
"""Ages in minutes at which a shape begins its next column; the doublings of Postfix's qshape(1)."""
FLUSH_BATCH: Final = 1000
"""Rows a flush moves in one commit: short enough to stand in no scheduler's way."""

FIRST_INSTANT: Final = datetime.fromtimestamp(0, UTC)


class DeliveryFilter(msgspec.Struct, frozen=True):
    """Which deliveries to read; what is empty or None lets all through. `since` and `until` go by the time in the id."""

    statuses: frozenset[DeliveryStatus] = frozenset()
    source: Source | None = None
    delivery_class: DeliveryClass | None = None
    template_id: str | None = None
    rule: str | None = None
    recipient_hash: bytes | None = None
    since: datetime | None = None
    until: datetime | None = None


class QueueFilter(msgspec.Struct, frozen=True):
    """Which live deliveries to read. `domain` is a lower-case A-label."""

    statuses: frozenset[DeliveryStatus] = frozenset()
    delivery_class: DeliveryClass | None = None
    next_hop: str | None = None
    domain: str | None = None
    rule: str | None = None


class Burial(msgspec.Struct, frozen=True):
    """Why and when a delivery became a dead letter."""

    cause: str
    reason: str
    buried_at: datetime


class StoredDelivery(msgspec.Struct, frozen=True):
    """A delivery as it stands in the table. `recipients` is empty once its payload is erased.

    Addresses that are sealed by a key that is not here are empty texts.

    `suppressed_because` is empty where the suppression list left out nobody, else it has a place for each recipient.
    """

    id: UUID
    source: str
    delivery_class: str
    guarantee: str
    status: DeliveryStatus
    next_hop: str
    recipient_domain: str
    recipient_states: str
    recipients: tuple[str, ...]
    size_bytes: int
    attempts: int
    rungs_used: int
    takeovers: int
    accepted_at: datetime
    due_at: datetime | None
    expires_at: datetime | None
    finished_at: datetime | None
    claimed_by: UUID | None
    claimed_at: datetime | None
    dot_at: datetime | None
    template_id: str | None
    catalog_version: str | None
    locale: str | None
    last_reason: str | None
    last_rule: str | None
    parent_id: UUID | None
    locale_chain: str | None = None
    suppressed_because: tuple[str | None, ...] = ()
    burial: Burial | None = None


class StoredAttempt(msgspec.Struct, frozen=True):
    """One recorded attempt."""

    number: int
    status: AttemptStatus
    certainty: str
    phase: str | None
    severity: str | None
    scope: str | None
    rule: str | None
    next_hop: str
    code: int | None
    enhanced: str | None
    reply: str | None
    replica_id: UUID
    started_at: datetime
    finished_at: datetime
    recipients: tuple[RecipientOutcome, ...]
    steps: tuple[Step, ...]


class StoredChange(msgspec.Struct, frozen=True):
    """One change by hand; `status` is the delivery's after it."""

    verb: str
    status: str
    actor: str
    reason: str
    changed_at: datetime


class StoredReplica(msgspec.Struct, frozen=True):
    """One replica; `silent_s` is how long ago it was heard of, by the database's clock.

    `totals`: what it did since it began, deliveries `accepted` and attempts by status.
    """

    id: UUID
    host: str
    pid: int
    version: str
    started_at: datetime
    last_seen_at: datetime
    in_flight: int
    stopped_at: datetime | None
    lost_at: datetime | None
    silent_s: float
    hops_out: dict[str, HopOut]
    totals: dict[str, int]


class StoredContent(msgspec.Struct, frozen=True):
    """A delivery's content for a person to look at.

    `withheld`: a login code or sensitive otherwise; nothing of it is read. `kept`: its payload is not erased. `message` is
    None then, or where it is not rendered yet, or larger than asked for: `size_bytes` tells.
    """

    withheld: bool
    kept: bool
    size_bytes: int | None
    message: bytes | None
    sealed: bool = False  # by a key that is not here


class ClassQueue(msgspec.Struct, frozen=True, rename={"name": "class"}):
    """How many deliveries of one class wait, and for how long the one due longest has been due (0: none is)."""

    name: str
    depth: int
    oldest_age_ms: float


class ShapeBy(StrEnum):
    """What a shape of the queue has a line for."""

    DOMAIN = "domain"
    NEXT_HOP = "next_hop"
    CLASS = "class"


class ShapeRow(msgspec.Struct, frozen=True):
    """Live deliveries of one domain, next hop or class: how many in all, and in each column of ages."""

    name: str
    total: int
    counts: tuple[int, ...]


class Shape(msgspec.Struct, frozen=True):
    """The queue by age: columns are up to `bounds_min` minutes old, and one more for older; the fullest rows first.

    `total` and `groups` count all there is, shown or not.
    """

    by: ShapeBy
    bounds_min: tuple[float, ...]
    rows: tuple[ShapeRow, ...]
    total: int
    groups: int


class Page(msgspec.Struct, frozen=True):
    """Deliveries, newest id first; `after` is where the next page begins, None at the end."""

    deliveries: tuple[StoredDelivery, ...]
    after: UUID | None


class QueueReads:
    """Reads and flushes. All verbs raise `StoreUnavailableError` only."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, wanted: DeliveryFilter, limit: int, after: UUID | None = None) -> Page:
        """Return up to `limit` deliveries whose id is lower than `after`."""
        way, rest_is_filtered = _way_in(wanted)
        end_id = _floor(wanted.until) if wanted.until else LAST_ID
        bound = SCANNED_ROWS if rest_is_filtered else limit
        rows = await self._store.fetch(
            "read_deliveries",
            way,
            _floor(wanted.since) if wanted.since else FIRST_ID,
            min(end_id, after) if after else end_id,
            wanted.recipient_hash,
            bound,
            sorted(wanted.statuses) or None,
            wanted.source,
            wanted.delivery_class,
            wanted.template_id,
            wanted.rule,
            limit,
        )
        found = tuple(_delivery(row, self._store.payload_keys) for row in rows if row["id"] is not None)
        if len(found) == limit:
            return Page(found, found[-1].id)
        return Page(found, rows[0]["horizon"] if rows[0]["scanned"] == bound else None)

    async def delivery(self, delivery_id: UUID) -> StoredDelivery | None:
        """Return one delivery, None if there is none with this id."""
        if delivery_id == LAST_ID:
            return None
        next_id = UUID(int=delivery_id.int + 1)
        rows = await self._store.fetch(
            "read_deliveries", "id", delivery_id, next_id, None, 1, None, None, None, None, None, 1
        )
        return _delivery(rows[0], self._store.payload_keys) if rows[0]["id"] is not None else None

    async def attempts(self, delivery_id: UUID) -> tuple[StoredAttempt, ...]:
        """Return the recorded attempts of a delivery in order, at most the last `ATTEMPTS_READ`."""
        rows = await self._store.fetch("read_attempts", delivery_id, ATTEMPTS_READ)
        return tuple(_attempt(row) for row in reversed(rows))

    async def changes(self, delivery_id: UUID) -> tuple[StoredChange, ...]:
        """Return the last changes by hand of a delivery, at most `CHANGES_READ`, the newest first."""
        rows = await self._store.fetch("read_changes", delivery_id, CHANGES_READ)
        return tuple(msgspec.convert(dict(row), StoredChange) for row in rows)

    async def content(self, delivery_id: UUID, max_bytes: int) -> StoredContent | None:
        """Return what may be shown of one delivery's content, None if there is none with this id."""
        rows = await self._store.fetch("read_content", delivery_id, max_bytes)
        if not rows:
            return None
        fields, is_sealed = dict(rows[0]), False
        try:
            message = fields["message"]
            fields["message"] = message and self._store.payload_keys.open(
                delivery_id, Content.MESSAGE, message
            )
        except SealedError:
            fields["message"], is_sealed = None, True
        return StoredContent(**fields, sealed=is_sealed)

    async def schedule(self) -> tuple[ClassQueue, ...]:
        """Return what waits, by class; a class of which nothing waits is left out."""
        rows = await self._store.fetch("read_schedule")
        return tuple(msgspec.convert(dict(row), ClassQueue) for row in rows)

    async def queue(self, wanted: QueueFilter, limit: int) -> tuple[StoredDelivery, ...]:
        """Return up to `limit` deliveries that are waiting, sending or held, the one due longest first."""
        rows = await self._store.fetch(
            "read_queue",
            limit,
            sorted(wanted.statuses) or None,
            wanted.delivery_class,
            wanted.next_hop,
            wanted.domain,
            wanted.rule,
        )
        return tuple(_delivery(row, self._store.payload_keys) for row in rows)

    async def shape(self, by: ShapeBy, limit: int) -> Shape:
        """Return how old what waits, is being sent or is held is; up to `limit` rows."""
        found = await self._store.fetch("read_shape", by, SHAPE_BOUNDS_MIN, limit)
        rows = []
        for record in found:
            counts = dict(zip(record["buckets"], record["counts"], strict=True))
            ages = tuple(counts.get(bucket, 0) for bucket in range(len(SHAPE_BOUNDS_MIN) + 1))
            rows.append(ShapeRow(record["name"], record["total"], ages))
        total, groups = (found[0]["everything"], found[0]["groups"]) if found else (0, 0)
        return Shape(by, SHAPE_BOUNDS_MIN, tuple(rows), total, groups)

    async def replicas(self) -> tuple[StoredReplica, ...]:
        """Return the replicas that are known, the newest first."""
        rows = await self._store.fetch("read_replicas", REPLICAS_READ)
        return tuple(map(replica_of, rows))

    async def flush_one(self, delivery_id: UUID, *, actor: str, reason: str) -> int:
        """Make one delivery due now; 0 if it is not waiting."""
        return len(await self._store.fetch("flush_one", delivery_id, actor, reason))

    async def flush(
        self, *, next_hop: str | None = None, domain: str | None = None, actor: str, reason: str
    ) -> int:
        """Make all waiting deliveries due that failed before, or those of a next hop or recipient domain.

        Moves them in batches, each its own commit with its record, and answers how many there were. Scheduled mail that was never tried
        keeps its time.
        """
        rows = await self._store.fetch("read_waiting_hops")
        hops = [row["name"] for row in rows if next_hop in (None, row["name"])]
        counts = [
            await self._flush_lane(hop, name, domain, actor, reason) for hop in hops for name in DeliveryClass
        ]
        return sum(counts)

    async def _flush_lane(
        self, next_hop: str, delivery_class: DeliveryClass, domain: str | None, actor: str, reason: str
    ) -> int:
        total, due_at, last_id = 0, FIRST_INSTANT, FIRST_ID
        while True:
            rows = await self._store.fetch(
                "flush", next_hop, delivery_class, due_at, last_id, domain, FLUSH_BATCH, actor, reason
            )
            total += len(rows)
            if len(rows) < FLUSH_BATCH:
                return total
            due_at, last_id = rows[-1]["due_at"], rows[-1]["id"]


def _way_in(wanted: DeliveryFilter) -> tuple[str, bool]:
    """Return the most selective index for `wanted`, and whether it leaves anything to filter row by row."""
    others = any((wanted.source, wanted.delivery_class, wanted.template_id, wanted.rule))
    if wanted.recipient_hash is not None:
        return "recipient", others or bool(wanted.statuses)
    for way, covered in _STATUS_WAYS:
        if wanted.statuses and wanted.statuses <= covered:
            return way, others or wanted.statuses < covered
    return "id", others or bool(wanted.statuses)


_STATUS_WAYS: Final[Sequence[tuple[str, frozenset[DeliveryStatus]]]] = (
    ("waiting", WAITING),
    ("sending", frozenset({DeliveryStatus.SENDING})),
    ("held", frozenset({DeliveryStatus.HELD})),
    ("dead_letter", frozenset({DeliveryStatus.DEAD_LETTER})),
)


def _floor(instant: datetime) -> UUID:
    """Return the lowest UUIDv7 of the millisecond `instant`; before 1970, the lowest of all."""
    return UUID(int=max(int(instant.timestamp() * 1000), 0) << 80)


def _delivery(row: asyncpg.Record, keys: PayloadKeys) -> StoredDelivery:
    fields = dict(row)
    cause = fields.get("cause")
    fields |= {
        "delivery_class": fields["class"],
        "recipients": tuple(_opened(row["id"], text, keys) for text in fields["recipients"] or ()),
        "suppressed_because": tuple(fields["suppressed_because"] or ()),
        "burial": Burial(cause, fields["burial_reason"], fields["buried_at"]) if cause else None,
    }
    return msgspec.convert(fields, StoredDelivery)


def _opened(delivery_id: UUID, text: str, keys: PayloadKeys) -> str:
    try:
        return keys.open_text(delivery_id, Content.RECIPIENT, text)
    except SealedError:
        return ""


def replica_of(row: asyncpg.Record) -> StoredReplica:
    """Return a row of `read_replicas` as a value."""
    fields = dict(row)
    fields["hops_out"] = msgspec.json.decode(fields["hops_out"], type=dict[str, HopOut])
    fields["totals"] = msgspec.json.decode(fields["totals"], type=dict[str, int])
    return msgspec.convert(fields, StoredReplica)


def _attempt(row: asyncpg.Record) -> StoredAttempt:
    fields = dict(row)
    for name, kind in (("recipients", tuple[RecipientOutcome, ...]), ("steps", tuple[Step, ...])):
        fields[name] = msgspec.json.decode(fields[name] or "[]", type=kind)
    return msgspec.convert(fields, StoredAttempt)
