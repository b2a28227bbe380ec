"""Masks mail addresses: in text that is kept or logged, and one by one where a person must recognise their own.

Replies love to echo the address they are about. Nothing here knows which address was meant: whatever could be one is
masked, also inside a link or an encoded sender. It runs in linear time, since the server chooses the text.
"""

import re
from typing import Final

MASK: Final = "…@…"

_AT_SIGN: Final = re.compile(r"@|\uff20|%40")  # plain, full-width, within a link
# Runs of what can stand in an address, and quoted local parts with spaces (bounded: no backtracking over long text).
_RUN: Final = re.compile(r'"[^"@]{1,64}"(?:@|\uff20|%40)[^\s<>"(),;]*|[^\s<>"(),;]+')


def mask_addresses(text: str, *, keep: "re.Pattern[str] | None" = None) -> str:
    """Return `text` with each thing that looks like a mail address replaced by `…@…`, unless `keep` matches it whole."""
    if not _AT_SIGN.search(text):
        return text

    def masked(run: re.Match[str]) -> str:
        kept = not _AT_SIGN.search(run[0]) or (keep is not None and keep.fullmatch(run[0]))
        return run[0] if kept else MASK

    return _RUN.sub(masked, text)


def mask_address(address: str) -> str:
    """Return `address` so that its owner recognises it and nobody else learns it: `a***@d***`; empty stays empty."""
    local, at, domain = address.rpartition("@")
    return f"{local[:1]}***@{domain[:1]}***" if at else ""
