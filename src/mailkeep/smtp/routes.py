"""Routes: recipient domain -> next hop. Pure.

The exact domain wins, then the longest wildcard (`*.example.org` is every name below example.org, not itself), then the
default hop. Two rules stand above that: `sinkhole.test` goes to the sinkhole hop and nowhere else, and no other reserved
domain (RFC 2606) goes anywhere. Commands are held against them first; the next hop is chosen by them; and `may_leave` is
asked again before each attempt, for mail that was queued under other settings or by other means.
"""

from collections.abc import Mapping
from typing import Final

from mailkeep.core.address import is_reserved, is_sinkhole
from mailkeep.smtp.next_hop import NextHop

DEFAULT_HOP: Final = "default"
SINKHOLE_HOP: Final = "sinkhole"
_WILDCARD: Final = "*."


class ReservedDomainError(LookupError):
    """The domain is reserved and has no route here."""


def may_leave(domain: str, hop: str) -> bool:
    """Whether mail for `domain` (lower-case A-label) may be handed to the next hop of that name."""
    return not is_reserved(domain) or (is_sinkhole(domain) and hop == SINKHOLE_HOP)


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
        """Return the name of the next hop for a recipient domain (lower-case A-label). Raises `ReservedDomainError`."""
        if is_sinkhole(domain) and SINKHOLE_HOP in self.hops:
            return SINKHOLE_HOP
        if is_reserved(domain):
            raise ReservedDomainError(domain)
        found = self._exact.get(domain)
        rest = domain if self._below else ""
        while found is None and rest:  # at most 127 labels
            rest = rest.partition(".")[2]
            found = self._below.get(rest)
        return found or DEFAULT_HOP
