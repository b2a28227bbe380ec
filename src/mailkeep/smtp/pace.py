"""The pace of a next hop: so many messages a second and no more.

A token bucket that holds one token: a provider that counts by the second never sees two seconds' worth in one. Turns are
given in the order in which they are asked for, and each is given once, so that nobody is overtaken.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

WAIT_S: Final = 30.0
"""How long a message waits for its turn at most, holding a connection's place and a worker."""


class Pace:
    """Hands out turns, `per_s` of them a second. `clock` is monotonic seconds."""

    __slots__ = ("_clock", "_interval_s", "_next_s")

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = 1 / per_s
        self._clock = clock
        self._next_s = 0.0

    def take(self) -> float:
        """Take the next turn; return the seconds until it comes."""
        now_s = self._clock()
        turn_s = max(self._next_s, now_s)
        self._next_s = turn_s + self._interval_s
        return turn_s - now_s

    async def turn(self) -> None:
        """Wait for the next turn. One that is cancelled while waiting is lost."""
        if wait_s := self.take():
            await asyncio.sleep(wait_s)


def connections_at_pace(max_connections: int, per_s: float | None) -> int:
    """Return how many of a hop's connections are of use at `per_s`: more would only wait, for longer than `WAIT_S`."""
    return max_connections if per_s is None else max(1, min(max_connections, math.floor(per_s * WAIT_S)))
