"""Masks mail addresses in text that a server sent and that is kept on an attempt.

Replies love to echo the address they are about. Nothing here knows which address was meant: whatever could be one is
masked, also inside a link or an encoded sender. It runs in linear time, since the server chooses the text.
"""

import re
from typing import Final

MASK: Final = "…@…"

_AT_SIGN: Final = re.compile(r"@|\uff20|%40")  # plain, full-width, within a link
# Runs of what can stand in an address, and quoted local parts with spaces (bounded: no backtracking over long text).
_RUN: Final = re.compile(r'"[^"@]{1,64}"(?:@|\uff20|%40)[^\s<>"(),;]*|[^\s<>"(),;]+')


def mask_addresses(text: str) -> str:
    """Return `text` with each thing that looks like a mail address replaced by `…@…`."""
    return _RUN.sub(_mask, text) if _AT_SIGN.search(text) else text


def _mask(run: re.Match[str]) -> str:
    return MASK if _AT_SIGN.search(run[0]) else run[0]
