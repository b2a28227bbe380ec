"""How the classes share a bounded number of places: priority for login codes, and a reserved share for each class."""

from typing import Final

from mailkeep.core.delivery import DeliveryClass

PRIORITY: Final = (DeliveryClass.AUTH, DeliveryClass.TRANSACTIONAL, DeliveryClass.RELAY)
"""Who is served first."""
RESERVED: Final = {DeliveryClass.AUTH: 0.10, DeliveryClass.TRANSACTIONAL: 0.10, DeliveryClass.RELAY: 0.05}
"""The share of all places that the other classes can't take, so that a flood of one never starves another; at least one
place each, where there are more places than classes."""


class Shares:
    """Counts of places taken by class, out of `total`."""

    def __init__(self, total: int) -> None:
        least = 1 if total > len(PRIORITY) else 0
        self._reserved = {name: max(least, round(total * share)) for name, share in RESERVED.items()}
        self._free = total
        self._taken = dict.fromkeys(PRIORITY, 0)

    @property
    def free(self) -> int:
        """How many places nobody has."""
        return max(self._free, 0)

    def room(self, delivery_class: DeliveryClass) -> int:
        """Return how many more places `delivery_class` may take now."""
        kept_for_others = sum(
            max(self._reserved[name] - taken, 0)
            for name, taken in self._taken.items()
            if name != delivery_class
        )
        return max(self._free - kept_for_others, 0)

    def take(self, delivery_class: DeliveryClass) -> None:
        """Take one place."""
        self._taken[delivery_class] += 1
        self._free -= 1

    def give(self, delivery_class: DeliveryClass) -> None:
        """Give one place back."""
        self._taken[delivery_class] -= 1
        self._free += 1
