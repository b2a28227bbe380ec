"""Routes: recipient domain -> next hop. Pure."""

from collections.abc import Mapping
from typing import Final

from mailkeep.core.address import is_sinkhole
from mailkeep.smtp.next_hop import NextHop

DEFAULT_HOP: Final = "default"
SINKHOLE_HOP: Final = "sinkhole"


class Routes:
    """Where mail goes: `sinkhole.test` to the sinkhole, where there is one; everything else to the default hop."""

    def __init__(self, hops: Mapping[str, NextHop]) -> None:
        self.hops = hops

    def next_hop(self, domain: str) -> str:
        """Return the name of the next hop for a recipient domain (lower-case A-label)."""
        return SINKHOLE_HOP if is_sinkhole(domain) and SINKHOLE_HOP in self.hops else DEFAULT_HOP
