"""The envelope: one message as it is handed to the SMTP client, and the last wall before the wire.

Addresses and message bytes come validated from intake and our own writer; they are checked here once more, so that no
CR, LF, NUL or `>` ever changes the meaning of a command and no bare line end or stray dot the end of a message
("SMTP smuggling"). Nothing here repairs: what fails is not sent.
"""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from mailkeep.aside import PIECE_BYTES, breathe

_UTF8_LOCAL: Final = r"[^\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff\"(),:;<>@\[\\\]]+"
_QUOTED_LOCAL: Final = r'"(?:[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"\\]|\\[\x20-\x7e])*"'
_DOMAIN: Final = r"[A-Za-z0-9_.-]+|\[[A-Za-z0-9.:]+\]"
_ADDRESS: Final = re.compile(f"(?:{_UTF8_LOCAL}|{_QUOTED_LOCAL})@(?:{_DOMAIN})")


class UnsafeEnvelopeError(ValueError):
    """The envelope would not survive the wire unchanged. The message says why and repeats nothing of it."""


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """One message for the recipients that are still open.

    `recipients` are pairs of ordinal and address, `sender` may be empty (a bounce), `message` has CRLF lines and is not
    dot-stuffed. `smtputf8` and `eightbit` say what the message needs of the server.
    """

    sender: str
    recipients: tuple[tuple[int, str], ...]
    message: bytes
    smtputf8: bool = False
    eightbit: bool = False

    def __post_init__(self) -> None:
        """Refuse an envelope for nobody."""
        if not self.recipients:
            raise ValueError("an envelope needs a recipient")

    @property
    def addresses(self) -> list[str]:
        """The recipients' addresses, in order."""
        return [address for _, address in self.recipients]

    @property
    def needs_smtputf8(self) -> bool:
        """Whether only a server with SMTPUTF8 (RFC 6531) can take it."""
        return self.smtputf8 or not "".join([self.sender, *self.addresses]).isascii()

    @property
    def needs_8bitmime(self) -> bool:
        """Whether only a server with 8BITMIME (RFC 6152) can take it."""
        return self.eightbit or not self.message.isascii()


def check_safe(envelope: Envelope) -> None:
    """Raise `UnsafeEnvelopeError` unless every address fits a command and every line of the message ends in CR LF."""
    if envelope.sender and not _ADDRESS.fullmatch(envelope.sender):
        raise UnsafeEnvelopeError("the sender is not an address that fits a command")
    if not all(map(_ADDRESS.fullmatch, envelope.addresses)):
        raise UnsafeEnvelopeError("a recipient is not an address that fits a command")
    if not all(map(_is_safe, _pieces(envelope.message))):
        raise UnsafeEnvelopeError("the message has a bare CR or LF, or a NUL")


def _is_safe(text: bytes) -> bool:
    rest = text.replace(b"\r\n", b"")  # whatever of a line end is left, even side by side, was bare
    return not (b"\r" in rest or b"\n" in rest or b"\0" in rest)


def _pieces(message: bytes) -> Iterator[bytes]:
    """Yield `message` in pieces, none of which ends within a line end."""
    if len(message) <= PIECE_BYTES:
        yield message
        return
    start = 0
    while start < len(message):
        end = start + PIECE_BYTES
        end += message[end - 1 : end + 1] == b"\r\n"
        yield message[start:end]
        breathe()
        start = end


def dot_stuffed(message: bytes) -> bytes:
    """Return `message` with a dot before each leading dot (RFC 5321 section 4.5.2), ending in CR LF."""
    stuffed = message.replace(b"\r\n.", b"\r\n..")
    if stuffed.startswith(b"."):
        stuffed = b"." + stuffed
    return stuffed if stuffed.endswith(b"\r\n") else stuffed + b"\r\n"


def dot_stuffed_blocks(message: bytes, block_bytes: int) -> Iterator[bytes]:
    """Yield what `dot_stuffed` returns, block by block of `block_bytes` (at least 2) and the dots that come to them."""
    if len(message) <= block_bytes:
        yield dot_stuffed(message)
        return
    for start in range(0, len(message), block_bytes):
        # With the two octets before it: there the line end of a leading dot may stand.
        block = message[start - 2 : start + block_bytes] if start else b"\r\n" + message[:block_bytes]
        yield block.replace(b"\r\n.", b"\r\n..")[2:]
    if not message.endswith(b"\r\n"):
        yield b"\r\n"
