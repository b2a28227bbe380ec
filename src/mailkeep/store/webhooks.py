"""How far each webhook is: its cursor in the events, what is to be told again, which replica tells it.

The events themselves are the outbox: what goes well costs no row. A webhook is told by one replica at a time; one that is
gone is followed by another, and nothing that it still says counts. All verbs raise `StoreUnavailableError` only.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from mailkeep.core.event import Cursor
from mailkeep.store.events import StoredEvent, stored_event
from mailkeep.store.postgres import Store

MAX_PROBLEM_CHARS: Final = 200


class Retry(msgspec.Struct, frozen=True):
    """An event that failed `tries` times."""

    stored: StoredEvent
    tries: int


class Failure(msgspec.Struct, frozen=True):
    """An event that a webhook was not told, now for the time `tries`; `wait_s` until the next, None: given up."""

    stored: StoredEvent
    tries: int
    wait_s: float | None
    problem: str


class WebhookState(msgspec.Struct, frozen=True):
    """How a webhook fares. `behind_s`: since when the oldest event waits that it has not been told, None: there is none."""

    name: str
    told: int
    told_at: datetime | None
    problem: str | None
    disabled_at: datetime | None
    held_by: UUID | None
    waiting: int
    given_up: int
    behind_s: float | None


class WebhookCursors:
    """Webhooks as the table knows them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, names: Sequence[str]) -> None:
        """Make webhooks known; a new one is told what happens from now on."""
        await self._store.fetch("add_webhooks", list(names))

    async def hold(self, names: Sequence[str], replica_id: UUID) -> dict[str, Cursor]:
        """Return the cursors of those of `names` that this replica is to tell; it becomes the holder of what nobody holds."""
        rows = await self._store.fetch("hold_webhooks", list(names), replica_id)
        return {row["name"]: Cursor(row["position"], row["event_id"]) for row in rows}

    async def due_retries(self, name: str, limit: int) -> list[Retry]:
        """Return up to `limit` events that failed before and are due again."""
        rows = await self._store.fetch("read_webhook_retries", name, limit)
        return [Retry(stored_event(row), row["tries"]) for row in rows]

    async def count_waiting(self, name: str, at_most: int) -> int:
        """Return how many events wait for another try, counted up to `at_most`."""
        (row,) = await self._store.fetch("count_webhook_retries", name, at_most)
        return int(row["waiting"])

    async def settle(
        self,
        name: str,
        replica_id: UUID,
        cursor: Cursor,
        *,
        told: int = 0,
        retried: Sequence[StoredEvent] = (),
        failures: Sequence[Failure] = (),
        problem: str | None = None,
        disabled: bool = False,
    ) -> bool:
        """Record a round in one commit; False if this replica no longer holds the webhook: nothing is recorded then."""
        rows = await self._store.fetch(
            "settle_webhook",
            name,
            replica_id,
            cursor.position,
            cursor.event_id,
            told,
            [stored.cursor.event_id for stored in retried],
            problem and problem[:MAX_PROBLEM_CHARS],
            disabled,
            [failure.stored.cursor.event_id for failure in failures],
            [failure.stored.cursor.position for failure in failures],
            [failure.stored.event.data.delivery_id for failure in failures],
            [failure.tries for failure in failures],
            [failure.wait_s for failure in failures],
            [failure.problem[:MAX_PROBLEM_CHARS] for failure in failures],
        )
        return bool(rows)

    async def states(self) -> list[WebhookState]:
        """Return how every webhook fares that was ever known, by name."""
        return [msgspec.convert(dict(row), WebhookState) for row in await self._store.fetch("read_webhooks")]

    async def enable(self, name: str) -> bool:
        """Let a disabled webhook go on from where it stopped; False if it was not disabled."""
        return bool(await self._store.fetch("enable_webhook", name))

    async def retry(self, name: str) -> int:
        """Make due now all that failed, given up or not; answers how many events."""
        return len(await self._store.fetch("retry_webhook", name))
