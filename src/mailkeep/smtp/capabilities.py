"""What a server offers, read from its answer to EHLO (RFC 5321 section 4.1.1.1). Unknown keywords are passed over."""

from typing import Final

import msgspec

from mailkeep.smtp.reply import Reply

MAX_SIZE_DIGITS: Final = 20
"""RFC 1870 section 3: the size parameter has at most 20 digits."""


class Capabilities(msgspec.Struct, frozen=True):
    """The extensions we use. After HELO, and before EHLO, there are none. `max_size_bytes` 0 means no limit."""

    starttls: bool = False
    auth: frozenset[str] = frozenset()
    pipelining: bool = False
    size: bool = False
    max_size_bytes: int = 0
    eightbitmime: bool = False
    smtputf8: bool = False
    enhancedstatuscodes: bool = False


NO_CAPABILITIES: Final = Capabilities()


def parse_capabilities(reply: Reply) -> Capabilities:
    """Read the 250 answer to EHLO. Its first line is a greeting and carries none."""
    offered: dict[str, list[str]] = {}
    for line in map(str.upper, reply.lines[1:]):
        # "AUTH=PLAIN LOGIN" is how servers older than RFC 4954 say it.
        words = line.replace("=", " ", 1) if line.startswith("AUTH=") else line
        keyword, *parameters = words.split() or [""]
        offered.setdefault(keyword, []).extend(parameters)
    return Capabilities(
        starttls="STARTTLS" in offered,
        auth=frozenset(offered.get("AUTH", ())),
        pipelining="PIPELINING" in offered,
        size="SIZE" in offered,
        max_size_bytes=_size_limit(offered.get("SIZE", [])),
        eightbitmime="8BITMIME" in offered,
        smtputf8="SMTPUTF8" in offered,
        enhancedstatuscodes="ENHANCEDSTATUSCODES" in offered,
    )


def _size_limit(parameters: list[str]) -> int:
    digits = parameters[0] if parameters else ""
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= MAX_SIZE_DIGITS else 0
