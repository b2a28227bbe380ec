"""How many attempts of a kind may run at once before they only wait for each other.

Where the next hop is far, attempts wait for it and fifty at once are sent in the time of one. Where it is near and there is
more to send than one processor can, each waits for its turn in the event loop behind all the others: more of them send
nothing sooner, and a login code has to stand in the same line. So their number falls while an attempt waits long for its
first turn, as a share of what it takes in all, and rises again when it does not.
"""

from typing import Final

TURN_S: Final = 0.001
"""A wait for a turn that harms nobody."""
TURNS: Final = 4
"""What an attempt over a resting connection takes: one to begin, two for the replies, one to end. Where that many waits are more
than half of its time, it is this process that it waits for."""
LEAST: Final = 4


class Crowd:
    """Attempts that run, `most` at the most."""

    def __init__(self, most: int) -> None:
        self._most = self._limit = most
        self._running = 0

    @property
    def has_room(self) -> bool:
        """Whether one more may begin."""
        return self._running < self._limit

    def begin(self) -> None:
        """Count one more."""
        self._running += 1

    def end(self, waited_s: float, took_s: float) -> None:
        """Count one less, which waited so long for its first turn and took so long in all."""
        self._running -= 1
        if waited_s > TURN_S and 2 * TURNS * waited_s > took_s:
            self._limit = max(self._limit - 1, min(LEAST, self._most))
        else:
            self._limit = min(self._limit + 1, self._most)
