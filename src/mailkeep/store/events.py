"""Events in the order in which a reader can't miss any: that of the transactions that wrote them, once all before are over.

Called by `mailkeep.operator` and by the dispatcher of webhooks. All verbs raise `StoreUnavailableError` only.
"""

from collections.abc import Set as AbstractSet
from typing import Final

import asyncpg
import msgspec

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.core.event import TYPE_PREFIX, Cursor, Event, EventData
from mailkeep.store.postgres import Store

SCANNED_ROWS: Final = 5000
"""Events that one filtered page looks at, more than any page has: some 10 ms of PostgreSQL."""


class StoredEvent(msgspec.Struct, frozen=True):
    """An event with its place in the order: `cursor` is just after it."""

    event: Event
    cursor: Cursor


class StoredEvents(msgspec.Struct, frozen=True):
    """A page of events; the next one begins at `after`, now or when there are more."""

    events: tuple[StoredEvent, ...]
    after: Cursor


class Events:
    """Reads of events."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(
        self, after: Cursor, limit: int, statuses: AbstractSet[DeliveryStatus] = frozenset()
    ) -> StoredEvents:
        """Return up to `limit` events after a cursor, those with one of `statuses`, if given; it may be short, even empty."""
        wanted = sorted(statuses) or None
        scanned = SCANNED_ROWS if wanted else limit
        rows = await self._store.fetch("read_events", after.position, after.event_id, wanted, scanned, limit)
        found = tuple(stored_event(row) for row in rows if row["id"] is not None)
        if len(found) == limit:
            return StoredEvents(found, found[-1].cursor)
        last = rows[0]["last_position"], rows[0]["last_id"]
        return StoredEvents(found, Cursor(*last) if rows[0]["scanned"] else after)

    async def before_last(self, count: int) -> Cursor:
        """Return the cursor after which the last `count` events come."""
        (row,) = await self._store.fetch("find_last_events", count)
        return Cursor(row["position"], row["id"])


def stored_event(row: asyncpg.Record) -> StoredEvent:
    """Return the event in a row."""
    data = msgspec.convert(dict(row), EventData)
    event = Event(
        f"evt_{row['delivery_id']}_{row['id']}", TYPE_PREFIX + data.status, row["occurred_at"], data
    )
    return StoredEvent(event, Cursor(row["position"], row["id"]))
