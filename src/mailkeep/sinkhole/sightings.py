"""Sightings: how often a recipient, or a (client, sender, recipient), was offered before.

In memory and bounded; a sinkhole that restarts has seen nobody. The session asks it for modes that count.
"""

from collections import OrderedDict
from typing import Final

MAX_SIGHTINGS: Final = 100_000
"""More recipients than one test sends to; beyond that the oldest are new again."""


class Sightings:
    """A bounded count by key, each with the time of its first sighting."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, ...], tuple[int, float]] = OrderedDict()

    def note(self, key: tuple[str, ...], now_s: float, window_s: float) -> int:
        """Count one more sighting of `key` and return how many went before it within `window_s` of the first."""
        count, first_s = self._seen.get(key, (0, now_s))
        if now_s - first_s > window_s:
            count, first_s = 0, now_s
        self._seen[key] = (count + 1, first_s)
        if len(self._seen) > MAX_SIGHTINGS:
            self._seen.popitem(last=False)
        return count
