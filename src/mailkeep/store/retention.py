"""What retention removes, and in which order; called by the retention worker only.

Nobody waits for it, and mail would have had the disk and the processor that it takes: it works a fifth of the time at most.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import Final, TypeVar

import asyncpg
import msgspec

from mailkeep.core.command import ID_DRIFT_S
from mailkeep.core.ids import FIRST_ID
from mailkeep.store.postgres import Store

T = TypeVar("T")

REST: Final = 4.0
"""Rest after each statement that removes, times as long as it took."""
REST_OF_DAY: Final = 9.0
"""The same after a day was dropped: half a second of disk and processor for a million deliveries."""
MAKE_DAYS_EVERY_S: Final = 3600.0
"""A sweep may last for days, and mail needs the partitions of those meanwhile."""
DELETE_BATCH: Final = 5000
"""Rows a statement: short enough to stand in nobody's way."""
KEY_BLOCKS: Final = 256
"""Blocks of idempotency keys a statement reads, 2 MiB: some 15,000 keys."""


class Swept(msgspec.Struct, frozen=True):
    """How much one sweep removed."""

    days_dropped: int = 0
    payload_days_dropped: int = 0
    deliveries_deleted: int = 0
    payloads_deleted: int = 0
    keys_deleted: int = 0
    replicas_deleted: int = 0
    malformed_deleted: int = 0
    changes_deleted: int = 0
    suppressions_deleted: int = 0
    webhook_retries_deleted: int = 0

    def as_fields(self) -> dict[str, int]:
        """Return the counts that are not zero."""
        return {name: count for name, count in msgspec.structs.asdict(self).items() if count}


class Retention:
    """Sweeps by the ages given in seconds; all of them count from the end of a delivery."""

    def __init__(
        self, store: Store, *, delivery_s: float, payload_s: float, key_s: float, malformed_s: float
    ) -> None:
        self._store = store
        self._delivery_s = delivery_s
        self._payload_s = payload_s
        self._key_s = key_s
        self._malformed_s = malformed_s
        self._made_days_s = 0.0

    async def sweep(self) -> Swept:
        """Remove what is old enough and make the partitions of the days to come. Raises `StoreUnavailableError`."""
        await self._make_days()
        days_ended = days_dropped = payload_days = deliveries = payloads = 0
        for day in await self._days("deliveries"):
            judged = await self._judge(day, self._delivery_s)
            if judged["has_ended"]:
                days_ended += 1
                days_dropped += await self._drop(
                    day, ("payloads", "attempts", "recipients", "events", "deliveries")
                )
            elif judged["has_old"]:
                deliveries += await self._delete_of_day("delete_old_deliveries", day, self._delivery_s)
        for day in await self._days("payloads"):
            judged = await self._judge(day, self._payload_s)
            if judged["has_ended"]:
                payload_days += await self._drop(day, ("payloads",))
            elif judged["has_old"]:
                payloads += await self._delete_of_day("delete_old_payloads", day, self._payload_s)
        return Swept(
            days_dropped=days_dropped,
            payload_days_dropped=payload_days,
            deliveries_deleted=deliveries,
            payloads_deleted=payloads,
            # They are swept once a day: not while a day stands that could not be locked, whose keys would outlive it.
            keys_deleted=await self._delete_keys() if days_dropped == days_ended else 0,
            replicas_deleted=len(await self._store.fetch("delete_old_replicas")),
            malformed_deleted=await self._delete("delete_old_malformed", self._malformed_s),
            changes_deleted=await self._delete("delete_old_changes", self._delivery_s),
            suppressions_deleted=await self._delete("delete_old_suppressions"),
            webhook_retries_deleted=await self._delete("delete_old_retries"),
        )

    async def _days(self, table: str) -> list[str]:
        rows = await self._store.fetch("partition_days", table)
        return [row["day"] for row in rows]

    async def _judge(self, day: str, age_s: float) -> asyncpg.Record:
        (judged,) = await self._store.fetch_of_day("judge_day", day, age_s, ID_DRIFT_S)
        return judged

    async def _drop(self, day: str, tables: tuple[str, ...]) -> int:
        rows = await self._at_ease(self._store.fetch("drop_day", day, list(tables)), REST_OF_DAY)
        return int(rows[0][0])

    async def _delete(self, name: str, *arguments: object) -> int:
        total = 0
        while deleted := len(await self._at_ease(self._store.fetch(name, *arguments, DELETE_BATCH))):
            total += deleted
        return total

    async def _delete_of_day(self, name: str, day: str, age_s: float) -> int:
        # From where the last batch ended: what it deleted stays in the way until PostgreSQL has cleaned up.
        total, last = 0, FIRST_ID
        while rows := await self._at_ease(self._store.fetch(name, day, age_s, DELETE_BATCH, last)):
            total += len(rows)
            last = max(row["id"] for row in rows)
        return total

    async def _delete_keys(self) -> int:
        total = 0
        for row in await self._store.fetch("read_key_blocks"):
            for first in range(0, row["blocks"], KEY_BLOCKS):
                deleted = await self._at_ease(
                    self._store.fetch(
                        "delete_old_keys", self._key_s, self._delivery_s, first, first + KEY_BLOCKS
                    )
                )
                total += len(deleted)
            await self._store.fetch("note_keys_swept")
        return total

    async def _at_ease(self, removing: Awaitable[T], rest: float = REST) -> T:
        """Return what `removing` returns, after a rest."""
        began_s = time.monotonic()
        removed = await removing
        await asyncio.sleep((time.monotonic() - began_s) * rest)
        if time.monotonic() - self._made_days_s >= MAKE_DAYS_EVERY_S:
            await self._make_days()
        return removed

    async def _make_days(self) -> None:
        await self._store.ensure_partitions()
        self._made_days_s = time.monotonic()
