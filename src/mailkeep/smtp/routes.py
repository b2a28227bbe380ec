"""Routes: recipient domain -> next hop. Pure.

The exact domain wins, then the longest wildcard (`*.example.org` is every name below example.org, not itself), then the
default hop. Two rules stand above that, and intake holds them: `sinkhole.test` goes to the sinkhole hop and nowhere else,
and no other reserved domain comes here.
"""

from collections.abc import Mapping
from typing import Final

from mailkeep.core.address import is_sinkhole
from mailkeep.smtp.next_hop import NextHop

DEFAULT_HOP: Final = "default"
SINKHOLE_HOP: Final = "sinkhole"
_WILDCARD: Final = "*."


class Routes:
    """Where mail goes, by the `domains` of `hops`. Raises ValueError where two of them name the same."""

    def __init__(self, hops: Mapping[str, NextHop]) -> None:
        self.hops = hops
        self._exact: dict[str, str] = {}
        self._below: dict[str, str] = {}
        for hop in hops.values():
            for domain in hop.domains:
                table = self._below if domain.startswith(_WILDCARD) else self._exact
                if table.setdefault(domain.removeprefix(_WILDCARD), hop.name) != hop.name:
                    raise ValueError(f"two next hops take {domain}")

    def next_hop(self, domain: str) -> str:
        """Return the name of the next hop for a recipient domain (lower-case A-label)."""
        if is_sinkhole(domain) and SINKHOLE_HOP in self.hops:
            return SINKHOLE_HOP
        found = self._exact.get(domain)
        rest = domain if self._below else ""
        while found is None and rest:  # at most 127 labels
            rest = rest.partition(".")[2]
            found = self._below.get(rest)
        return found or DEFAULT_HOP
