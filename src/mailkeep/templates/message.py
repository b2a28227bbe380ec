"""The bytes of a message, written in one pass and equal for equal inputs (invariant I9).

RFC 5322 for the form, RFC 2045 to 2049 for MIME, RFC 2047 for encoded words, RFC 2231 for file names, RFC
6532 for addresses that only SMTPUTF8 can carry. What leaves here is seven-bit (but for such addresses), its
lines end in CRLF and are at most 998 octets long, 78 where possible. It holds no bare CR or LF and no NUL,
and no header that was not asked for: every value is checked once more here, although intake has checked it,
and text that looks like an encoded word is encoded anew, so that no reader decodes it into something else
(the class of CVE-2024-6923). There is never a Bcc header.

Dot-stuffing is the SMTP session's. Called by intake and the attempt worker.
"""

import binascii
import hashlib
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import Final
from urllib.parse import quote

import msgspec

from mailkeep.aside import breathe
from mailkeep.core.address import Mailbox
from mailkeep.core.command import Attachment
from mailkeep.templates.plaintext import text_from_html

TEXT_LINE_CHARS: Final = 78  # RFC 5322 section 2.1.1, preferred
ENCODED_LINE_CHARS: Final = 76  # RFC 2045 sections 6.7 and 6.8, and RFC 2047 section 2 for headers
MAX_TOKEN_CHARS: Final = 900  # what can't be folded in a header and still fits 998 octets
ENCODED_WORD_OCTETS: Final = 39  # 64 characters in base64 and frame, a line behind any name of ours
QUOTED_NAME_CHARS: Final = 60  # a longer display name goes into encoded words, which fold
PARAMETER_CHARS: Final = 50  # one section of a parameter (RFC 2231 section 3)
LINES_AT_ONCE: Final = 1024
"""Lines of base64 that are made in one go: a third of a millisecond, between two of which others have their turn."""
MAX_BOUNDARY_TRIES: Final = 100  # a body that holds two boundaries of one delivery is already beyond chance

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BODY_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
_LOCAL: Final = re.compile(r"\"(?:[^\"\\]|\\.)*\"|[^\s\"(),:;<>@\[\\\]]+")
_DOMAIN: Final = re.compile(r"[A-Za-z0-9.-]+")
_PHRASE: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+")  # RFC 5322 section 3.2.3, atoms
_MESSAGE_ID: Final = re.compile(r"[!-;=?A-~]{1,128}@[!-;=?A-~]{1,255}")
_HEADER_NAME: Final = re.compile(r"[!-9;-~]{1,64}")
_CONTENT_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}")
_CONTENT_ID: Final = re.compile(r"[!-;=?-~]{1,128}")
# Without quote, backslash, and the equals sign that every encoded word has.
_QUOTABLE_PARAMETER: Final = re.compile(r"(?! )[ !#-<>-\[\]-~]{1,50}(?<! )")
_PERCENT_SECTION: Final = re.compile(rf"(?:%..|[^%]){{1,{PARAMETER_CHARS // 3}}}")
_COMPOSITE: Final = ("multipart/", "message/")
_LINES: Final = struct.Struct(f"{ENCODED_LINE_CHARS}s" * LINES_AT_ONCE)
_OCTETS_AT_ONCE: Final = _LINES.size // 4 * 3
_OWN_HEADERS: Final = frozenset(
    {"from", "to", "cc", "bcc", "reply-to", "subject", "date", "message-id", "mime-version"}
)
_SEVEN_BIT: Final = b"\t\r\n" + bytes(range(0x20, 0x7F))
_EIGHT_BIT: Final = bytes(range(0x80, 0x100))


class MessageError(ValueError):
    """Content that can't be written as a message; the message names the field and never its value."""


class Report(msgspec.Struct, frozen=True):
    """What makes a message a delivery status notification (RFC 3464).

    `status` has its fields in ASCII lines ending in LF, groups parted by an empty one; `head` is the header of the message that
    it is about, in CRLF lines.
    """

    status: str
    head: bytes


class MessageParts(msgspec.Struct, frozen=True, gc=False):
    """What a message is made of.

    `message_id` is `id@host` without its angle brackets, `date` has an offset. `text` or `html` is given; if
    only `html` is, the text is made from it; a `report` has `text` alone. `headers` are further ones in decoded form, such as
    `("Auto-Submitted", "auto-generated")`.
    """

    message_id: str
    date: datetime
    sender: Mailbox
    to: tuple[Mailbox, ...]
    subject: str
    text: str | None = None
    html: str | None = None
    cc: tuple[Mailbox, ...] = ()
    reply_to: tuple[Mailbox, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    report: Report | None = None


class _Entity(msgspec.Struct, frozen=True, gc=False):
    """One MIME entity: its `Content-*` header lines, and its body in pieces, the last ending in CRLF."""

    headers: str
    body: tuple[bytes, ...]


def needs_smtputf8(parts: MessageParts) -> bool:
    """Return whether the header of the message holds an address that only SMTPUTF8 (RFC 6531) can carry."""
    return any(mailbox.needs_smtputf8 for mailbox in (parts.sender, *parts.to, *parts.cc, *parts.reply_to))


def build_message(parts: MessageParts, boundary_seed: str) -> bytes:
    """Return the message as it goes on the wire, before dot-stuffing.

    `boundary_seed` is the delivery's id: boundaries are made from it. Raises `MessageError`.
    """
    entity = _content(parts, boundary_seed)
    return b"".join(((_header(parts) + entity.headers + "\r\n").encode(), *entity.body))


def _header(parts: MessageParts) -> str:
    if not _MESSAGE_ID.fullmatch(parts.message_id):
        raise MessageError("message_id is not of the form id@host")
    if parts.date.tzinfo is None:
        raise MessageError("date has no offset")
    return "".join(
        (
            f"Date: {_date(parts.date.replace(microsecond=0))}\r\n",
            _from(parts.sender),
            _addresses("To", parts.to),
            _addresses("Cc", parts.cc),
            _addresses("Reply-To", parts.reply_to),
            _unstructured("Subject", parts.subject),
            f"Message-ID: <{parts.message_id}>\r\n",
            *(_further(name, value) for name, value in parts.headers),
            "MIME-Version: 1.0\r\n",
        )
    )


# What many messages have in common is made once; each bound holds more than one moment needs.
@lru_cache(maxsize=64)
def _date(date: datetime) -> str:
    return format_datetime(date)


@lru_cache(maxsize=64)
def _from(sender: Mailbox) -> str:
    return _addresses("From", (sender,))


@lru_cache(maxsize=64)
def _further(name: str, value: str) -> str:
    lowered = name.lower()
    if not _HEADER_NAME.fullmatch(name) or lowered in _OWN_HEADERS or lowered.startswith("content-"):
        raise MessageError("a further header has a name that is malformed or the writer's own")
    return _unstructured(name, value)


def _addresses(name: str, mailboxes: tuple[Mailbox, ...]) -> str:
    if not mailboxes:
        return ""
    tokens: list[str] = []
    for mailbox in mailboxes:
        if not _LOCAL.fullmatch(mailbox.local) or not _DOMAIN.fullmatch(mailbox.domain):
            raise MessageError(f"{name} holds an address that is malformed or no A-label")
        _refuse_control(name, mailbox.local)
        if mailbox.display:
            tokens += (*_display(name, mailbox.display), f"<{mailbox.address}>,")
        else:
            tokens.append(f"{mailbox.address},")
    tokens[-1] = tokens[-1][:-1]
    return _folded(name, tokens)


def _display(name: str, display: str) -> list[str]:
    _refuse_control(name, display)
    if not _is_foldable(display):
        return list(_encoded_words(display))
    if _PHRASE.fullmatch(display):
        return display.split(" ")
    if len(display) <= QUOTED_NAME_CHARS:
        return ['"' + display.replace("\\", "\\\\").replace('"', '\\"') + '"']
    return list(_encoded_words(display))


def _unstructured(name: str, value: str) -> str:
    _refuse_control(name, value)
    return _folded(name, value.split(" ") if _is_foldable(value) else list(_encoded_words(value)))


def _refuse_control(name: str, value: str) -> None:
    if _CONTROL.search(value):
        raise MessageError(f"{name} holds a control character or line break")


def _is_foldable(value: str) -> bool:
    """Whether `value` can stand as it is: ASCII, no encoded word, nothing that folding could change."""
    return (
        value.isascii()
        and "=?" not in value
        and "  " not in value
        and value == value.strip(" ")
        and (len(value) <= MAX_TOKEN_CHARS or max(map(len, value.split(" "))) <= MAX_TOKEN_CHARS)
    )


def _folded(name: str, tokens: list[str]) -> str:
    """Return the header with its lines broken between tokens (RFC 5322 section 2.2.3)."""
    line = f"{name}: {' '.join(tokens)}"
    if len(line) <= ENCODED_LINE_CHARS:
        return line + "\r\n"
    lines, line = [], f"{name}: {tokens[0]}"
    for token in tokens[1:]:
        if len(line) + 1 + len(token) > ENCODED_LINE_CHARS:
            lines.append(line)
            line = ""
        line += " " + token
    return "\r\n".join((*lines, line, ""))


def _encoded_words(text: str) -> Iterator[str]:
    """Yield `text` as encoded words that each hold whole characters (RFC 2047 section 5)."""
    octets = text.encode()
    start = 0
    while start < len(octets):
        end = start + ENCODED_WORD_OCTETS
        while end < len(octets) and octets[end] & 0xC0 == 0x80:
            end -= 1
        word = binascii.b2a_base64(octets[start:end], newline=False).decode()
        yield f"=?utf-8?b?{word}?="
        start = end


def _content(parts: MessageParts, seed: str) -> _Entity:
    text, html = parts.text, parts.html
    if text is None:
        if html is None:
            raise MessageError("neither text nor html is given")
        text = text_from_html(html)
    entity = _text("plain", text)
    if parts.report is not None:
        return _reported(entity, parts.report, _boundary(seed, text, parts.report.status))
    if html is None and not parts.attachments:
        return entity
    boundary = _boundary(seed, text, html or "")
    if html is not None:
        entity = _multipart("alternative", f"{boundary}.a", (entity, _text("html", html)))
    inline = [file for file in parts.attachments if file.content_id and html is not None]
    apart = [file for file in parts.attachments if not file.content_id or html is None]
    if inline:
        related = (entity, *map(_attachment, inline))
        entity = _multipart("related", f"{boundary}.r", related, '; type="multipart/alternative"')
    if apart:
        entity = _multipart("mixed", f"{boundary}.m", (entity, *map(_attachment, apart)))
    return entity


def _reported(words: _Entity, report: Report, boundary: str) -> _Entity:
    """Return a multipart/report (RFC 6522) of words for people, words for programs, and a header."""
    if not report.status.isascii() or _BODY_CONTROL.search(report.status):
        raise MessageError("the status fields hold what is not printable ASCII")
    status = _Entity(
        "Content-Type: message/delivery-status\r\n", (report.status.replace("\n", "\r\n").encode(),)
    )
    head = _Entity("Content-Type: text/rfc822-headers\r\n", (report.head,))
    if not report.head.isascii():  # RFC 6533 section 6
        headers = "Content-Type: message/global-headers\r\nContent-Transfer-Encoding: base64\r\n"
        head = _Entity(headers, tuple(_base64(report.head)))
    return _multipart("report", f"{boundary}.s", (words, status, head), "; report-type=delivery-status")


def _boundary(seed: str, *texts: str) -> str:
    """Return a boundary that no text holds; its `=_` can't occur in quoted-printable or base64."""
    for salt in range(MAX_BOUNDARY_TRIES):
        boundary = "=_" + hashlib.blake2b(f"{salt} {seed}".encode(), digest_size=12).hexdigest()
        if not any(boundary in text for text in texts):
            return boundary
    raise MessageError("the text holds every boundary tried")


def _multipart(subtype: str, boundary: str, entities: Iterable[_Entity], parameters: str = "") -> _Entity:
    body: list[bytes] = []
    for entity in entities:
        body.append(f"--{boundary}\r\n{entity.headers}\r\n".encode())
        body += entity.body
    body.append(f"--{boundary}--\r\n".encode())
    headers = f'Content-Type: multipart/{subtype}{parameters};\r\n boundary="{boundary}"\r\n'
    return _Entity(headers, tuple(body))


def _text(subtype: str, text: str) -> _Entity:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.removesuffix("\n").split("\n")
    try:
        octets = "\r\n".join((*lines, "")).encode()
    except UnicodeEncodeError:
        raise MessageError(f"the {subtype} text holds a lone surrogate") from None
    body: tuple[bytes, ...] = (octets,)
    if max(map(len, lines)) <= TEXT_LINE_CHARS and not octets.translate(None, _SEVEN_BIT):
        encoding = "7bit"
    elif _is_mostly_high(octets):
        encoding, body = "base64", tuple(_base64(octets))
    else:
        encoding, body = "quoted-printable", (binascii.b2a_qp(octets),)
    headers = f"Content-Type: text/{subtype}; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n"
    return _Entity(headers, body)


def _is_mostly_high(octets: bytes) -> bool:
    """Whether two octets more for each beyond ASCII outweigh a third more for all."""
    return 6 * (len(octets) - len(octets.translate(None, _EIGHT_BIT))) > len(octets)


def _base64(content: bytes) -> Iterator[bytes]:
    """Yield `content` in lines of base64, many at a time."""
    octets = memoryview(content)
    for start in range(0, len(octets), _OCTETS_AT_ONCE):
        encoded = binascii.b2a_base64(octets[start : start + _OCTETS_AT_ONCE], newline=False)
        yield b"\r\n".join((*_lines(encoded), b""))
        breathe()


def _lines(encoded: bytes) -> Sequence[bytes]:
    if len(encoded) == _LINES.size:
        return _LINES.unpack(encoded)  # half the time of as many slices
    return [
        encoded[start : start + ENCODED_LINE_CHARS] for start in range(0, len(encoded), ENCODED_LINE_CHARS)
    ]


def _attachment(file: Attachment) -> _Entity:
    content_type = file.content_type.lower()
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise MessageError("an attachment's content_type is malformed")
    if content_type.startswith(_COMPOSITE):  # RFC 2046 sections 5.1 and 5.2 forbid them base64
        content_type = "application/octet-stream"
    headers = [
        f"Content-Type: {content_type}",
        "Content-Transfer-Encoding: base64",
        f"Content-Disposition: {'inline' if file.content_id else 'attachment'};{_filename(file.filename)}",
    ]
    if file.content_id:
        if not _CONTENT_ID.fullmatch(file.content_id):
            raise MessageError("an attachment's content_id is malformed")
        headers.append(f"Content-ID: <{file.content_id}>")
    return _Entity("\r\n".join((*headers, "")), tuple(_base64(file.content)))


def _filename(filename: str) -> str:
    """Return the parameter on folded lines of its own, in sections if it is long (RFC 2231)."""
    _refuse_control("an attachment's filename", filename)
    if _QUOTABLE_PARAMETER.fullmatch(filename):
        return f'\r\n filename="{filename}"'
    sections = _PERCENT_SECTION.findall(quote(filename, safe=""))
    if len(sections) == 1:
        return f"\r\n filename*=utf-8''{sections[0]}"
    sections[0] = f"utf-8''{sections[0]}"
    return ";".join(f"\r\n filename*{number}*={section}" for number, section in enumerate(sections))
