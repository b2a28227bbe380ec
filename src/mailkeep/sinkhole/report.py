"""The report: one line for each answer the sinkhole gives about mail, for a person or for a program.

Addresses are masked (`a***@d***`), except in `accept-log`, whose purpose is to show envelope and headers and which somebody
asked for by name. No line ends or control characters of a client reach the output (CWE-117).
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec

from mailkeep.core.redact import mask_address

MAX_SHOWN_RECIPIENTS: Final = 5  # a line stays a line
MAX_SHOWN_HEADER_CHARS: Final = 16_384  # header sections of real mail are shorter; a hostile one is cut


class Exchange(msgspec.Struct, frozen=True):
    """One answer: a recipient refused, a phase that went wrong, or what became of a message."""

    at: datetime
    client: str
    mode: str
    phase: str
    sender: str
    recipients: tuple[str, ...]
    reply: str  # empty when nothing was said
    message_id: str = ""
    size_bytes: int = 0
    headers: str | None = None  # only in accept-log


Observe = Callable[[Exchange], None]
"""Takes each exchange as it happens; it must not block."""


def mask(address: str) -> str:
    """Return `address` masked and fit for a terminal."""
    return _printable(mask_address(address))


def readable(exchange: Exchange) -> str:
    """Return the line a person reads on a terminal; in accept-log the headers follow, indented."""
    show = mask if exchange.headers is None else _printable
    shown = [f"<{show(address)}>" for address in exchange.recipients[:MAX_SHOWN_RECIPIENTS]]
    hidden = len(exchange.recipients) - len(shown)
    line = (
        f"{exchange.at.astimezone():%H:%M:%S}  <{show(exchange.sender)}> -> {', '.join(shown) or '-'}"
        f"{f' and {hidden} more' if hidden else ''}  {exchange.mode}  {exchange.phase}: {exchange.reply or '(no reply)'}"
    )
    header_lines = (exchange.headers or "")[:MAX_SHOWN_HEADER_CHARS].splitlines()
    return "\n".join([line, *(f"    {_printable(header)}" for header in header_lines)])


def as_json(exchange: Exchange) -> str:
    """Return the same as one JSON object, with `event` = `sinkhole_answer`."""
    show = mask if exchange.headers is None else str
    fields = {
        "event": "sinkhole_answer",
        "at": exchange.at,
        "client": exchange.client,
        "mode": exchange.mode,
        "phase": exchange.phase,
        "sender": show(exchange.sender),
        "recipients": [show(address) for address in exchange.recipients[:MAX_SHOWN_RECIPIENTS]],
        "recipient_count": len(exchange.recipients),
        "reply": exchange.reply,
        "size_bytes": exchange.size_bytes,
    }
    if exchange.headers is not None:
        fields |= {"message_id": exchange.message_id, "headers": exchange.headers[:MAX_SHOWN_HEADER_CHARS]}
    return msgspec.json.encode(fields).decode()


def now_utc() -> datetime:
    """Return the present instant, aware."""
    return datetime.now(UTC)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
