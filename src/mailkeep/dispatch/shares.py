"""How classes and next hops share a bounded number of places: priority for login codes, a share for each of them.

Each class has places that the others can't take, so that a flood of one never starves another. A next hop may hold so many
times what is still free (dynamic thresholds, Choudhury and Hahne 1998): a stalled one fills up and leaves the rest, and
several stalled ones leave less; the last place a class can take is for a hop that has none. The places of a class are its own whatever else its hop holds: a login
code passes a flood for the same hop.
"""

from collections import Counter
from typing import Final

from mailkeep.core.delivery import DeliveryClass

PRIORITY: Final = (DeliveryClass.AUTH, DeliveryClass.TRANSACTIONAL, DeliveryClass.RELAY)
"""Who is served first."""
RESERVED: Final = {DeliveryClass.AUTH: 0.10, DeliveryClass.TRANSACTIONAL: 0.10, DeliveryClass.RELAY: 0.05}
"""The share of all places that the other classes can't take; at least one place each, where there are more places than
classes."""
HOP_TIMES_FREE: Final = 3
"""What one of several next hops may hold, as a multiple of the free places: one stalled hop ends at 3/4 of all places,
two at 3/7 each."""


class Shares:
    """Counts of places taken by class and by next hop, out of `total`. `several_hops`: whether hops must share."""

    def __init__(self, total: int, *, several_hops: bool = False) -> None:
        least = 1 if total > len(PRIORITY) else 0
        self._reserved = {name: max(least, round(total * share)) for name, share in RESERVED.items()}
        self._several_hops = several_hops
        self._free = total
        self._taken = dict.fromkeys(PRIORITY, 0)
        self._kept = dict(self._reserved)
        """What each class has not taken yet of the places that are its own."""
        self._kept_in_all = sum(self._kept.values())
        self._taken_by_hop: Counter[str] = Counter()

    @property
    def free(self) -> int:
        """How many places nobody has."""
        return max(self._free, 0)

    def room(self, delivery_class: DeliveryClass, hop: str) -> int:
        """Return how many more places mail of `delivery_class` for `hop` may take now."""
        kept_for_others = self._kept_in_all - self._kept[delivery_class]
        room = self._free - kept_for_others
        # Claims that were asked for and births meanwhile can take more places than there are; a class keeps its own all the same.
        within_class = self._reserved[delivery_class] - self._taken[delivery_class]
        if self._several_hops:
            # Each place taken lowers the threshold by so many and raises what is held by one.
            below = HOP_TIMES_FREE * self._free - self._taken_by_hop[hop]
            within_hop = (below + HOP_TIMES_FREE) // (HOP_TIMES_FREE + 1)
            # What is kept for other classes is free and yet out of reach: the last place in reach is for a newcomer.
            within_hop = min(within_hop, room - 1 if self._taken_by_hop[hop] else max(room - 1, 1))
            room = min(room, within_hop)
        return max(room, within_class, 0)

    def take(self, delivery_class: DeliveryClass, hop: str) -> None:
        """Take one place."""
        self._count(delivery_class, hop, 1)

    def give(self, delivery_class: DeliveryClass, hop: str) -> None:
        """Give one place back."""
        self._count(delivery_class, hop, -1)

    def _count(self, delivery_class: DeliveryClass, hop: str, places: int) -> None:
        self._taken[delivery_class] += places
        self._taken_by_hop[hop] += places
        self._free -= places
        kept = max(self._reserved[delivery_class] - self._taken[delivery_class], 0)
        self._kept_in_all += kept - self._kept[delivery_class]
        self._kept[delivery_class] = kept
