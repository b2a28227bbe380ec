"""In which order the addresses of a next hop are tried, and for how long one that failed comes last. Pure but for its clock."""

import math
import random
import time
from collections.abc import Callable
from typing import Final

from mailkeep.smtp.next_hop import HopAddress

BAD_S: Final = 60.0
"""How long an address that failed is tried after the others: seldom enough to cost little, soon enough to be found well."""


class Failover:
    """The addresses of one hop. `clock` is monotonic seconds, `chance` in [0, 1)."""

    __slots__ = ("_addresses", "_bad_until_s", "_chance", "_clock")

    def __init__(
        self,
        addresses: tuple[HopAddress, ...],
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._addresses = addresses
        self._clock = clock
        self._chance = chance
        self._bad_until_s: dict[HopAddress, float] = {}

    def order(self) -> list[HopAddress]:
        """Return every address: the well ones first, then by priority, within one at random by weight."""
        now_s = self._clock()

        def turn(address: HopAddress) -> tuple[bool, int, float]:
            # The least of exponential variates with rates w falls to each in proportion to its w.
            lot = -math.log(1 - self._chance()) / address.weight
            return self._bad_until_s.get(address, 0.0) > now_s, address.priority, lot

        return sorted(self._addresses, key=turn)

    def failed(self, address: HopAddress) -> None:
        """Note that no session could be opened there."""
        self._bad_until_s[address] = self._clock() + BAD_S

    def worked(self, address: HopAddress) -> None:
        """Note that one could."""
        self._bad_until_s.pop(address, None)
