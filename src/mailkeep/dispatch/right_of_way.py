"""The right of way of login codes: while one is on its way through this process, everything else steps aside.

One event loop does all the work of a process, so that whatever runs there holds a login code up: preparing a batch of the
stream, encoding a commit of a hundred rows, beginning fifty attempts. Those ask here first. They are held for `HOLD_S` at
most, and afterwards have a part of that time for themselves: a flood of login codes slows the rest down and never stops it.
What PostgreSQL has begun can't be held any more, so that while codes are about the rest's statements go one at a time, and are
short.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

HOLD_S: Final = 0.05
"""A login code takes a few milliseconds from its request to the final dot where the next hop is near; with a far one most of
that is waiting, which others may use."""

FREE_SHARE: Final = 1 / 3
"""How long the rest is not held again after a hold, as a share of its length: a quarter of the time is always its own."""

ABOUT_S: Final = 1.0
"""After a login code the next one is expected for so long, and is to find PostgreSQL and the event loop less busy."""

TURN_S: Final = 0.1
"""A statement of the rest waits for the one before it for so long: one that hangs, at a lock say, stops no other."""

ROWS_AMONG_CODES: Final = 16
"""Of a statement of the rest while codes are about: one of 64 keeps a processor for 5 to 10 ms and the disk for one or two, which a
code that meets it waits for. The rest pays a fifth of its speed for it."""


class RightOfWay:
    """Counts login codes on their way, and holds the rest for a bounded time. `on_clear` is called when a hold ends."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._passing = 0
        self._held_at = 0.0
        self._free_until = -float("inf")
        self._about_until = -float("inf")
        self._turn = asyncio.Lock()
        self._clear = asyncio.Event()
        self._clear.set()
        self._end: asyncio.TimerHandle | None = None
        self.on_clear: Callable[[], None] | None = None

    @property
    def is_clear(self) -> bool:
        """Whether work that can wait may go on."""
        return self._clear.is_set()

    @property
    def codes_are_about(self) -> bool:
        """Whether a login code was on its way a moment ago, so that the next one is expected."""
        return self._monotonic() < self._about_until

    def rows_at_most(self, rows: int) -> int:
        """Return how many rows a statement of the rest may have now, where else it may have `rows`."""
        return min(rows, ROWS_AMONG_CODES) if self.codes_are_about else rows

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Let the rest step aside while the body runs."""
        self._passing += 1
        self._about_until = self._monotonic() + ABOUT_S
        if self.is_clear and self._monotonic() >= self._free_until:
            self._held_at = self._monotonic()
            self._clear.clear()
            self._end = asyncio.get_running_loop().call_later(HOLD_S, self._release)
        try:
            yield
        finally:
            self._passing -= 1
            if not self._passing and not self.is_clear:
                self._release()

    async def let_pass(self) -> None:
        """Wait while a login code passes; at once where there is none."""
        if not self.is_clear:
            await self._clear.wait()

    async def give_way(self) -> None:
        """Do the same, and give the event loop a turn where there is none: for what goes on for long."""
        if self.is_clear:
            await asyncio.sleep(0)
        else:
            await self._clear.wait()

    @asynccontextmanager
    async def in_turn(self) -> AsyncIterator[None]:
        """Run the body, a statement of the rest: once no login code passes, and one at a time while they are about."""
        alone = self.codes_are_about and await self._take_turn()
        try:
            await self.let_pass()
            yield
        finally:
            if alone:
                self._turn.release()

    async def _take_turn(self) -> bool:
        try:
            async with asyncio.timeout(TURN_S):
                return await self._turn.acquire()
        except TimeoutError:
            return False

    def _release(self) -> None:
        assert self._end is not None
        self._end.cancel()
        now = self._monotonic()
        self._free_until = now + (now - self._held_at) * FREE_SHARE
        self._clear.set()
        if self.on_clear is not None:
            self.on_clear()
