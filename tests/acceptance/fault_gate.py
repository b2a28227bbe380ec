"""The gate of the crash matrix: every step of a replica passes it, under a name, and one of them can be held there.

Proxies and next hops call `enter` where something begins and `reach` at each of its steps. A gate counts only while it is
`open`; without a wanted point it just writes down what passed, which is how the rows of the matrix are found.
"""

import asyncio
import threading
from collections import Counter
from enum import StrEnum
from typing import Final

import msgspec

VERDICT_WITHIN_S: Final = 600.0
"""Nothing is held longer: a cell that forgets what it holds must not hold the whole run."""


class CutError(Exception):
    """The connection is to be cut here."""


class Step(StrEnum):
    """Where within an exchange."""

    BEFORE = "before"  # asked, and nothing of it has reached the other side
    INSIDE = "inside"  # executed, not committed; of a dot: stored, not answered
    AFTER = "after"  # over for the other side, and the answer has not come


class Point(msgspec.Struct, frozen=True, order=True):
    """A step of the `number`-th exchange of a name at a place (`postgres`, `redis`, `smtp`, `http`)."""

    place: str
    name: str
    number: int
    step: Step

    def __str__(self) -> str:
        number = f" ({self.number})" if self.number > 1 else ""
        return f"{self.place} {self.name}{number}: {self.step}"


class Gate:
    """One replica's gate. `reach` belongs to the loop of the proxies; the rest may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wanted: Point | None = None) -> None:
        self.is_open = False
        self.wanted = wanted
        self.passed: dict[Point, None] = {}
        """Every point that was reached, in the order of first arrival."""
        self.hit = threading.Event()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._loop = loop
        self._verdict: asyncio.Future[bool] = loop.create_future()

    def open(self) -> None:
        """Count from here on."""
        self.is_open = True

    def enter(self, place: str, name: str) -> int:
        """Begin an exchange; returns its number, 0 while the gate is closed."""
        if not self.is_open:
            return 0
        self._counts[place, name] += 1
        return self._counts[place, name]

    def wants(self, place: str, name: str, number: int, step: Step) -> bool:
        """Whether this is where something is to be held."""
        return self.wanted == Point(place, name, number, step) and not self.hit.is_set()

    async def reach(self, place: str, name: str, number: int, step: Step) -> bool:
        """Pass a point, at once or when the held one is let go; False: the connection is to be cut here."""
        if not number:
            return True
        self.passed[Point(place, name, number, step)] = None
        if not self.wants(place, name, number, step):
            return True
        self.hit.set()
        async with asyncio.timeout(VERDICT_WITHIN_S):
            return await asyncio.shield(self._verdict)

    def reach_from_thread(self, place: str, name: str, step: Step) -> bool:
        """Do what `enter` and `reach` do, for a thread that is no part of the loop."""
        passing = self.reach(place, name, self.enter(place, name), step)
        return asyncio.run_coroutine_threadsafe(passing, self._loop).result()

    def let_go(self, *, cut: bool) -> None:
        """Let what is held pass, or cut its connection."""

        def settle() -> None:
            if not self._verdict.done():
                self._verdict.set_result(not cut)

        self._loop.call_soon_threadsafe(settle)
