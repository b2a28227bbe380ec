"""The wire: the parts of SMTP's text that need reading, as plain functions of bytes.

Pure. Strict where leniency would hide a client's fault: one CRLF, one space, no source routes, no bare CR or LF. The
session calls these; nothing here knows of connections. RFC 5321 sections 2.3.8, 4.1.2 and 4.5.2, RFC 5322 section 2.2.
"""

import re
from typing import Final

import msgspec

MAX_TEXT_LINE_OCTETS: Final = 998  # RFC 5321 section 4.5.3.1.6, without the CRLF
MAX_PATH_OCTETS: Final = 254  # RFC 5321 section 4.5.3.1.3, less the angle brackets

BARE_CR: Final = "bare_cr"
BARE_LF: Final = "bare_lf"
NUL: Final = "nul"
LONG_LINE: Final = "long_line"
UNDECLARED_8BIT: Final = "undeclared_8bit"
SMUGGLING: Final = frozenset({BARE_CR, BARE_LF, NUL})
"""Anomalies by which one message can pass for two (CVE-2023-51764): refused, not only recorded."""

_PATH: Final = re.compile(
    rb"(?P<keyword>FROM|TO):"
    rb'<(?P<address>(?:"(?:[^"\\\x00-\x1f\x7f]|\\[ -~])+"|[^\s"<>@\x00-\x1f\x7f]+)@[^\s"<>@\x00-\x1f\x7f]+)?>'
    rb"(?P<parameters>(?: [A-Za-z0-9][A-Za-z0-9-]*(?:=[!-<>-~]+)?)*)",
    re.IGNORECASE,
)
_SUBJECT: Final = re.compile(rb"(?:^|\r\n)subject:((?:[^\r\n]|\r\n[ \t])*)", re.IGNORECASE)
_MESSAGE_ID: Final = re.compile(rb"(?:^|\r\n)message-id:[ \t]*(?:\r\n[ \t]+)?(\S+)", re.IGNORECASE)


class Path(msgspec.Struct, frozen=True):
    """The argument of MAIL or RCPT. `address` is empty for the null sender; parameter names are upper case."""

    address: str
    parameters: dict[str, str]


def parse_path(keyword: bytes, argument: bytes) -> Path | None:
    """Return the path in `FROM:<ann@example.org> SIZE=1` (`keyword` is `FROM` or `TO`), or None if it is malformed."""
    match = _PATH.fullmatch(argument)
    if not match or match["keyword"].upper() != keyword:
        return None
    octets = match["address"] or b""
    parameters = match["parameters"].decode().split()
    try:
        address = octets.decode()
    except UnicodeDecodeError:
        return None
    if len(octets) > MAX_PATH_OCTETS or (not address and keyword == b"TO"):
        return None
    return Path(address, {name.upper(): value for name, _, value in (p.partition("=") for p in parameters)})


def unstuff(stuffed: bytes) -> bytes:
    """Return the message in `stuffed`, its lines as they came between the CRLF before them and the final dot.

    Takes the one added dot from each line that begins with one (RFC 5321 section 4.5.2).
    """
    return stuffed.replace(b"\r\n.", b"\r\n")[2:]


def anomalies_of(message: bytes, *, is_8bit_declared: bool) -> tuple[str, ...]:
    """Name what is wrong with the octets of `message`, whose every line ought to end in CRLF."""
    line_ends = message.count(b"\r\n")
    lines = message.split(b"\r\n")
    found = {
        BARE_CR: message.count(b"\r") > line_ends,
        BARE_LF: message.count(b"\n") > line_ends,
        NUL: b"\0" in message,
        LONG_LINE: max(map(len, lines)) > MAX_TEXT_LINE_OCTETS,
        UNDECLARED_8BIT: not (is_8bit_declared or message.isascii()),
    }
    return tuple(name for name, is_found in found.items() if is_found)


def header_section(message: bytes) -> bytes:
    """Return the header fields of `message`, up to the empty line."""
    return message.partition(b"\r\n\r\n")[0]


def subject_of(message: bytes) -> str:
    """Return the Subject of `message` unfolded, as it was written otherwise; empty when it has none."""
    match = _SUBJECT.search(header_section(message))
    return match[1].replace(b"\r\n", b"").strip().decode("utf-8", "backslashreplace") if match else ""


def message_id_of(message: bytes) -> str:
    """Return the Message-ID of `message` with its angle brackets, or an empty string."""
    match = _MESSAGE_ID.search(header_section(message))
    return match[1].decode("ascii", "backslashreplace") if match else ""
