"""SMTP replies (RFC 5321 section 4.2), parsed incrementally from whatever pieces the network delivers.

`ReplyParser` accepts what a well-formed server sends and nothing else: the first violation is kept as a `ProtocolFault`
value and ends the stream, because a client that guesses where replies begin may pair them with the wrong commands.
Every buffer is bounded. The text of a `Reply` can be stored and logged as it is: escaped, addresses masked, cut.
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache, reduce
from typing import Final

import msgspec

from mailkeep.core.outcome import MAX_REPLY_CHARS
from mailkeep.core.redact import mask_addresses

MAX_LINE_BYTES: Final = 2048
"""One line with its line end. RFC 5321 section 4.5.3.1.5 says 512; real servers exceed it a little."""
MAX_REPLY_LINES: Final = 200
"""Lines of one reply. Long EHLO answers have about 30."""
MAX_REPLY_BYTES: Final = 64 * 1024
"""All lines of one reply: bounds what a session holds in memory."""
MAX_SAMPLE_CHARS: Final = 80
"""Shown of a line that broke the protocol: enough to see what speaks there, a web server or SSH."""
CACHED_REPLIES: Final = 64
"""With the bound on a reply, 4 MiB at the very most."""

SERVICE_CLOSING: Final = 421
"""May answer any command; the server closes the connection after it (RFC 5321 section 3.8)."""

_LINE: Final = re.compile(rb"([0-9]{3})(?:([ -])(.*))?\r", re.DOTALL)
_ENHANCED: Final = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")


class ProtocolFault(StrEnum):
    """How a server broke RFC 5321 section 4.2."""

    NOT_A_REPLY = "a line that is not an SMTP reply"
    CODE_OUT_OF_RANGE = "a reply code outside 100 to 599"
    MIXED_CODES = "a multi-line reply with different codes"
    BARE_LF = "a line that does not end in CR LF"
    NUL = "a NUL byte"
    LINE_TOO_LONG = "a line that is too long"
    REPLY_TOO_LONG = "a reply that is too long"


class Reply(msgspec.Struct, frozen=True, gc=False):
    """One reply. `text` may be stored, and `shown`, the whole as in a transcript: `250 2.1.0 Ok`.

    `lines` are for parsing capabilities only: they may hold addresses.
    """

    code: int
    enhanced: str | None
    lines: tuple[str, ...]
    text: str
    shown: str

    @property
    def digit(self) -> int:
        """The first digit of the code: it alone decides when nothing else is known (RFC 5321 section 4.2.1)."""
        return self.code // 100


class ReplyParser:
    """Turns bytes into replies. After a fault it takes nothing more."""

    __slots__ = ("_code", "_lines", "_offender", "_size_bytes", "_tail", "fault")

    def __init__(self) -> None:
        self.fault: ProtocolFault | None = None
        self._offender = b""
        self._tail = b""
        self._code = 0
        self._lines: list[bytes] = []
        self._size_bytes = 0

    @property
    def pending(self) -> bool:
        """Whether bytes were fed that belong to no finished reply."""
        return bool(self._tail or self._lines or self.fault)

    @property
    def sample(self) -> str:
        """How the line that made the fault begins, fit to be stored."""
        shown = mask_addresses(escape(self._offender.removesuffix(b"\r")))
        return shown if len(shown) <= MAX_SAMPLE_CHARS else shown[: MAX_SAMPLE_CHARS - 1] + "…"

    def feed(self, data: bytes) -> list[Reply]:
        """Take `data` and return the replies it finishes; look at `fault` afterwards."""
        replies: list[Reply] = []
        buffer = self._tail + data if self._tail else data
        start = 0
        while self.fault is None and (end := buffer.find(b"\n", start)) >= 0:
            reply = self._take(buffer[start:end])
            start = end + 1
            if reply is not None:
                replies.append(reply)
        self._tail = buffer[start:] if self.fault is None else b""
        if len(self._tail) >= MAX_LINE_BYTES:
            self.fault = ProtocolFault.LINE_TOO_LONG
            self._offender, self._tail = self._tail[:MAX_LINE_BYTES], b""
        return replies

    def _take(self, line: bytes) -> Reply | None:
        reply = self._read(line)
        if self.fault is not None:
            self._offender = line[:MAX_LINE_BYTES]
        return reply

    def _read(self, line: bytes) -> Reply | None:
        parsed = _parse_line(line)
        if isinstance(parsed, ProtocolFault):
            self.fault = parsed
            return None
        code, more, text = parsed
        self._size_bytes += len(line) + 1
        if self._lines and code != self._code:
            self.fault = ProtocolFault.MIXED_CODES
        elif len(self._lines) >= MAX_REPLY_LINES or self._size_bytes > MAX_REPLY_BYTES:
            self.fault = ProtocolFault.REPLY_TOO_LONG
        elif more:
            self._code = code
            self._lines.append(text)
        else:
            reply = _reply(code, (*self._lines, text))
            self._lines, self._size_bytes = [], 0
            return reply
        return None


# Most replies of a session are word for word those before: both caches answer about three of four times.


@lru_cache(maxsize=CACHED_REPLIES)
def _parse_line(line: bytes) -> tuple[int, bool, bytes] | ProtocolFault:
    """Return the code, whether more lines follow, and the text of one line, which still has its CR."""
    if len(line) >= MAX_LINE_BYTES:
        return ProtocolFault.LINE_TOO_LONG
    if b"\0" in line:
        return ProtocolFault.NUL
    match = _LINE.fullmatch(line)
    if match is None:
        return ProtocolFault.NOT_A_REPLY if line.endswith(b"\r") else ProtocolFault.BARE_LF
    code = int(match[1])
    return (
        (code, match[2] == b"-", match[3] or b"") if 100 <= code <= 599 else ProtocolFault.CODE_OUT_OF_RANGE
    )


@lru_cache(maxsize=CACHED_REPLIES)
def _reply(code: int, raw_lines: tuple[bytes, ...]) -> Reply:
    lines = [escape(raw) for raw in raw_lines]
    match = _ENHANCED.match(lines[0])
    # RFC 2034 section 4: its class must be that of the code; one that contradicts the code is only text.
    enhanced = match[1] if match and int(match[1][0]) == code // 100 else None
    if enhanced:
        lines = [line.removeprefix(enhanced).lstrip(" ") for line in lines]
    return _told(code, enhanced, tuple(lines), lines)


def without(reply: Reply, secrets: Iterable[str]) -> Reply:
    """Return `reply` with a text in which none of `secrets` stands: some servers repeat what they did not understand."""
    hidden = [escape(secret.encode()) for secret in secrets]
    told = [reduce(lambda line, secret: line.replace(secret, "…"), hidden, line) for line in reply.lines]
    return reply if told == [*reply.lines] else _told(reply.code, reply.enhanced, reply.lines, told)


def _told(code: int, enhanced: str | None, lines: tuple[str, ...], told: Iterable[str]) -> Reply:
    text = storable(" ".join(told).strip())
    shown = f"{code} {enhanced} {text}" if enhanced else f"{code} {text}"
    return Reply(code, enhanced, lines, text, shown.rstrip())


def escape(raw: bytes) -> str:
    """Return `raw` as text in which whatever is not printable, or not UTF-8, stands as a backslash escape."""
    text = raw.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def storable(text: str) -> str:
    """Return `text` with addresses masked and cut to `MAX_REPLY_CHARS`."""
    masked = mask_addresses(text)
    return masked if len(masked) <= MAX_REPLY_CHARS else masked[: MAX_REPLY_CHARS - 1] + "…"
