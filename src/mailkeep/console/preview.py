"""What a stored message shows a person: its headers, its parts, its source. Read only, bounded, nothing is loaded or run.

The HTML comes out as it was sent: `console.guard` has the headers under which a browser may show it, in a frame without
script, forms or network. RFC 5322, RFC 2045.
"""

import asyncio
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from typing import Final

import msgspec

MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024
"""Larger ones are not parsed for a look."""
MAX_SHOWN_CHARS: Final = 400_000
"""Of text and of source: more than anybody reads, and what a phone can still show."""
MAX_PARTS: Final = 200
SHOWN_HEADERS: Final = ("From", "To", "Cc", "Reply-To", "Subject", "Date", "Message-ID")


class Attachment(msgspec.Struct, frozen=True):
    """One part that is neither the text nor the HTML."""

    name: str
    kind: str
    size_bytes: int


class Preview(msgspec.Struct, frozen=True):
    """A message taken apart. `source` is its octets as text, what is no UTF-8 escaped; `is_cut` says it is longer."""

    headers: tuple[tuple[str, str], ...]
    text: str | None
    html: str | None
    attachments: tuple[Attachment, ...]
    source: str
    is_cut: bool


async def look_at(message: bytes) -> Preview:
    """Do the same beside the loop: a message of megabytes takes a moment, and mail is sent from there."""
    return await asyncio.to_thread(preview, message)


def preview(message: bytes) -> Preview:
    """Take `message` apart; what is broken in it is left out, never a fault."""
    parsed = BytesParser(policy=policy.default).parsebytes(message)
    source = message[:MAX_SHOWN_CHARS].decode("utf-8", "backslashreplace").replace("\r\n", "\n")
    return Preview(
        headers=tuple(_headers(parsed)),
        text=_body(parsed, "plain"),
        html=_body(parsed, "html"),
        attachments=tuple(_attachments(parsed)),
        source=source,
        is_cut=len(message) > MAX_SHOWN_CHARS,
    )


def _headers(parsed: EmailMessage) -> list[tuple[str, str]]:
    found = []
    for name in SHOWN_HEADERS:
        try:
            value = parsed[name]
        except (ValueError, IndexError, AttributeError):  # the parser's own on what is no header
            continue
        if value is not None:
            found.append((name, str(value)))
    return found


def _body(parsed: EmailMessage, kind: str) -> str | None:
    try:
        part = parsed.get_body((kind,))
        return None if part is None else str(part.get_content())[:MAX_SHOWN_CHARS]
    except (LookupError, ValueError, AttributeError):  # an unknown charset, or a part that is none
        return None


def _attachments(parsed: EmailMessage) -> list[Attachment]:
    found = []
    for number, part in enumerate(parsed.walk()):
        if number == MAX_PARTS:
            break
        if part.is_multipart() or (part.get_content_disposition() or "inline") != "attachment":
            continue
        content = part.get_payload(decode=True)
        size_bytes = len(content) if isinstance(content, bytes) else 0
        found.append(Attachment(part.get_filename() or "without a name", part.get_content_type(), size_bytes))
    return found
