"""Throughput of the last minutes, of all replicas together: what their heartbeats tell, looked at every few seconds.

Each replica writes with its heartbeat what it did since it began; what it did between two heartbeats, by their time, is its
rate. So the figures are those of the whole deployment whichever process shows them, and cost one small read. They begin when
this process does. What a replica that dies did after its last heartbeat is not in them.
"""

import asyncio
import contextlib
from collections import deque
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import msgspec

from mailkeep.core.delivery import DeliveryClass
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.reads import QueueReads, StoredReplica

LOOK_S: Final = 5.0
"""Between two looks; replicas tell every 2 s (`MAIL_REPLICA_HEARTBEAT`)."""
LOOKS_KEPT: Final = 180
"""A quarter of an hour."""
LOOKS_A_COUNT: Final = 3
"""Looks for each count of what waits: a million waiting rows take PostgreSQL a fifth of a second."""


class Look(msgspec.Struct, frozen=True):
    """What was done a second by `at`, by name, and what waited then, by class."""

    at: datetime
    rates: dict[str, float]
    waiting: dict[str, int]


class _Seen(msgspec.Struct, frozen=True):
    """A replica at the last look: when it was heard of, what it had done then, and its rates."""

    heard_at: datetime
    totals: dict[str, int]
    rates: dict[str, float]


class Traffic:
    """Looks and remembers; `run` until cancelled."""

    def __init__(self, reads: QueueReads) -> None:
        self._reads = reads
        self._seen: dict[UUID, _Seen] = {}
        self._turn = 0
        self._waiting: dict[str, int] = {}
        self.looks: deque[Look] = deque(maxlen=LOOKS_KEPT)

    async def run(self) -> None:
        """Look every `LOOK_S` until cancelled; while PostgreSQL is away there is a gap."""
        while True:
            with contextlib.suppress(StoreUnavailableError):  # others say so
                await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Look once; the first look only learns where the replicas stand. Raises `StoreUnavailableError`."""
        if self._turn % LOOKS_A_COUNT == 0:
            depths = {row.name: row.depth for row in await self._reads.schedule()}
            self._waiting = {name.value: depths.get(name.value, 0) for name in DeliveryClass}
        live = [each for each in await self._reads.replicas() if not (each.lost_at or each.stopped_at)]
        self._seen = {replica.id: _next(self._seen.get(replica.id), replica) for replica in live}
        if self._turn:
            rates: dict[str, float] = {}
            for seen in self._seen.values():
                for name, rate in seen.rates.items():
                    rates[name] = rates.get(name, 0.0) + rate
            self.looks.append(Look(datetime.now(UTC), rates, self._waiting))
        self._turn += 1


def _next(before: _Seen | None, replica: StoredReplica) -> _Seen:
    heard_at, totals = replica.last_seen_at, replica.totals
    if before is None:
        return _Seen(heard_at, totals, {})
    passed_s = (heard_at - before.heard_at).total_seconds()
    if passed_s <= 0:  # not heard of since: heartbeats may be rarer than looks
        return before
    rates = {name: (total - before.totals.get(name, 0)) / passed_s for name, total in totals.items()}
    return _Seen(heard_at, totals, rates)
