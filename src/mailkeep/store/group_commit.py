"""Group commit: what arrives while one commit is in flight is written together by the next.

No wait is added when idle: the first entry leaves at once. Under load batches grow by themselves, and where a `gather_s` is given
the next one waits that long for as many entries as the last one had: a statement costs PostgreSQL and the driver as much as
twenty rows do.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

Entry = TypeVar("Entry")
Result = TypeVar("Result")

MAX_BATCH: Final = 64
"""Rows a statement: beyond this the cost per row no longer falls (measured: 64 to 256 are alike)."""
MAX_PENDING: Final = 4096
"""Entries that may wait for a commit; past it the caller is told to come back later instead of piling up memory."""


class OverloadedError(Exception):
    """More waits for a commit than the bound allows."""


class GroupCommit(Generic[Entry, Result]):
    """Gathers entries into batches for `write`, with at most `lanes` batches in flight.

    `write` gets as many entries as `max_batch` allows at that moment, 1 or more, and returns a result for each, in order. What it
    raises is raised to each caller of that batch.
    """

    def __init__(
        self,
        write: Callable[[list[Entry]], Awaitable[Sequence[Result]]],
        *,
        lanes: int = 1,
        gather_s: float = 0.0,
        max_batch: Callable[[], int] = lambda: MAX_BATCH,
    ) -> None:
        self._write = write
        self._lanes = lanes
        self._gather_s = gather_s
        self._max_batch = max_batch
        self._gathering: asyncio.Future[None] | None = None
        self._wanted = 0
        self._pending: deque[tuple[Entry, asyncio.Future[Result]]] = deque()
        self._flying = 0
        self._flights: set[asyncio.Task[None]] = set()

    def submit(self, entry: Entry) -> "asyncio.Future[Result]":
        """Queue `entry` and return the future of its result. Raises `OverloadedError` when too much waits already."""
        if len(self._pending) >= MAX_PENDING:
            raise OverloadedError(f"{MAX_PENDING} entries already wait for a commit")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._pending.append((entry, future))
        if self._gathering is not None and len(self._pending) >= self._wanted:
            self._end_gathering()
        if self._flying < self._lanes:
            self._flying += 1
            flight = asyncio.create_task(self._fly())
            self._flights.add(flight)
            flight.add_done_callback(self._flights.discard)
        return future

    async def drain(self) -> None:
        """Wait until nothing is pending or in flight."""
        while self._flights:
            await asyncio.wait(self._flights)

    async def _fly(self) -> None:
        while self._pending:
            batch = [self._pending.popleft() for _ in range(min(len(self._pending), self._max_batch()))]
            try:
                results = await self._write([entry for entry, _ in batch])
            except Exception as fault:  # noqa: BLE001 - a boundary: each caller of the batch gets the fault
                for _, future in batch:
                    if not future.done():
                        future.set_exception(fault)
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
            if self._gather_s and self._gathering is None and len(self._pending) < len(batch) > 1:
                await self._gather(len(batch))
        # In the same turn of the loop as the last look at `_pending`: an entry that comes now starts a new flight.
        self._flying -= 1

    async def _gather(self, wanted: int) -> None:
        """Wait until `wanted` entries are pending, `gather_s` at most."""
        loop = asyncio.get_running_loop()
        self._wanted, self._gathering = wanted, loop.create_future()
        bell = loop.call_later(self._gather_s, self._end_gathering)
        await self._gathering
        bell.cancel()

    def _end_gathering(self) -> None:
        if self._gathering is not None and not self._gathering.done():
            self._gathering.set_result(None)
        self._gathering = None
