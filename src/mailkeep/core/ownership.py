"""Whose addresses a caller of the send intake may send from: pure, decided once for each mail.

An owner is named by a token; what it owns is a list of addresses (`ann@example.org`) and whole domains (`@example.org`,
without those below it). Upper and lower case are one, as wherever addresses are compared here.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from mailkeep.core.address import AddressError, Mailbox, parse_mailbox

MAX_SENDERS: Final = 100
"""Addresses and domains of one owner; whoever needs more owns a domain."""


class OwnershipError(ValueError):
    """Not a list of addresses and domains that can be owned; the message says why and repeats none of it."""


class Owner(msgspec.Struct, frozen=True):
    """Who sends. `name` stands for it in idempotency and rate limits; `senders` as `parse_senders` gives them."""

    name: str
    senders: frozenset[str]

    def owns(self, mailbox: Mailbox) -> bool:
        """Whether it may send from `mailbox`."""
        return not self.senders.isdisjoint((mailbox.address.lower(), f"@{mailbox.domain}"))


def parse_senders(texts: Iterable[str]) -> tuple[str, ...]:
    """Return addresses and `@domain`s in one spelling, each once. Raises `OwnershipError`."""
    senders = tuple(dict.fromkeys(map(_parse, texts)))
    if not 1 <= len(senders) <= MAX_SENDERS:
        raise OwnershipError(f"give 1 to {MAX_SENDERS} addresses or domains")
    return senders


def _parse(text: str) -> str:
    is_domain = text.startswith("@")
    try:
        mailbox = parse_mailbox(f"postmaster{text}" if is_domain else text)
    except AddressError as fault:
        raise OwnershipError(
            f"each is an address like ann@example.org or a domain like @example.org: {fault}"
        ) from None
    if mailbox.display:
        raise OwnershipError("addresses are given without a name")
    return f"@{mailbox.domain}" if is_domain else mailbox.address.lower()
