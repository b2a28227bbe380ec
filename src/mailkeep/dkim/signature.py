"""DKIM signatures (RFC 6376; RFC 8463 for Ed25519), made once, when a message's bytes are fixed.

relaxed/relaxed, SHA-256, the whole body: no `l=`, with which text could be added (section 8.2), and no `x=`, which a retry
ladder could outlive. Headers that readers see or answer to are signed once more often than they stand in the message
(section 8.15), so that a second From or a Reply-To that was never there breaks the signature.

The canonical forms are our own, some twenty lines that rely on what the message writer guarantees (CRLF only, no controls in
headers); the arithmetic is cryptography's, which lets go of the interpreter while it signs. Nothing here reads files, DNS or
a clock. Called by `mailkeep.intake.signing`, on its threads.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from mailkeep.aside import PIECE_BYTES, breathe

ALWAYS: Final = ("from", "reply-to", "to", "cc", "subject", "date", "message-id")
"""Signed once more than present, also where that is not at all."""
IF_PRESENT: Final = (
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "auto-submitted",
    "list-unsubscribe",
    "list-unsubscribe-post",
)
"""Signed once more than present, if present: relays may add these. RFC 8058 section 4 asks for the last two."""
NAMES_A_LINE: Final = 3  # the longest three stay within 78 characters
LINE_CHARS: Final = 72

_FIELD_END: Final = re.compile(rb"\r\n(?![ \t])")


class Algorithm(StrEnum):
    """How a signature is made, as in its `a=`."""

    RSA = "rsa-sha256"
    ED25519 = "ed25519-sha256"


class SigningKey(msgspec.Struct, frozen=True):
    """A private key with the name under which its public half stands in DNS; `not_before`: None is ever since."""

    domain: str
    selector: str
    private_key: RSAPrivateKey | Ed25519PrivateKey
    not_before: datetime | None = None

    @property
    def algorithm(self) -> Algorithm:
        """The one algorithm that this key is for."""
        return Algorithm.RSA if isinstance(self.private_key, RSAPrivateKey) else Algorithm.ED25519


def signatures(message: bytes, keys: Iterable[SigningKey], signed_at_s: int) -> bytes:
    """Return one DKIM-Signature header for each key, to be put before `message`.

    `message` is as `build_message` wrote it; `signed_at_s` is in Unix seconds.
    """
    head_end = message.index(b"\r\n\r\n")
    names, fields = _covered(message[:head_end])
    body_hash = _base64(_body_hash(message, head_end + 4))
    return b"".join(_signature(key, names, fields, body_hash, signed_at_s) for key in keys)


def _signature(
    key: SigningKey, names: Sequence[str], fields: bytes, body_hash: str, signed_at_s: int
) -> bytes:
    lines = [":".join(names[start : start + NAMES_A_LINE]) for start in range(0, len(names), NAMES_A_LINE)]
    tags = (
        f"v=1; a={key.algorithm}; c=relaxed/relaxed; t={signed_at_s}",
        f"d={key.domain}",
        f"s={key.selector}",
        "h=" + ":\r\n  ".join(lines),
        f"bh={body_hash}",
        "b=",
    )
    field = ("DKIM-Signature: " + ";\r\n ".join(tags)).encode("ascii")
    # Section 3.7: itself comes last, with an empty `b=` and without its line end.
    value = _base64(_signed(key, fields + _relaxed_field(field)))
    pieces = [value[start : start + LINE_CHARS] for start in range(0, len(value), LINE_CHARS)]
    return field + "\r\n  ".join(pieces).encode("ascii") + b"\r\n"


def _signed(key: SigningKey, octets: bytes) -> bytes:
    match key.private_key:
        case RSAPrivateKey() as rsa:
            return rsa.sign(octets, PKCS1v15(), SHA256())
        case Ed25519PrivateKey() as ed25519:  # RFC 8463 section 3: of the hash, not of the octets
            return ed25519.sign(hashlib.sha256(octets).digest())


def _covered(head: bytes) -> tuple[list[str], bytes]:
    """Return the names for `h=`, and the fields in that order: the last of a name first (section 5.4.2)."""
    present: dict[str, list[bytes]] = {}
    for field in _FIELD_END.split(head):
        canonical = _relaxed_field(field)
        name = canonical[: canonical.index(b":")].decode("ascii")
        present.setdefault(name, []).append(canonical + b"\r\n")
    names: list[str] = []
    fields: list[bytes] = []
    for name in (*ALWAYS, *(name for name in IF_PRESENT if name in present)):
        found = present.get(name, [])
        names += [name] * (len(found) + 1)
        fields += reversed(found)
    return names, b"".join(fields)


def _relaxed_field(field: bytes) -> bytes:
    """Return a header field in the form of section 3.4.2, without its line end."""
    name, _, value = field.partition(b":")
    return name.strip().lower() + b":" + b" ".join(value.split())


def _body_hash(message: bytes, start: int) -> bytes:
    """Return the hash of the body, from `start` on, in the form of section 3.4.4; no second copy of it is made."""
    hashed, line_ends = hashlib.sha256(), b""
    is_empty = True
    while start < len(message):
        end = message.find(b"\n", start + PIECE_BYTES) + 1 or len(message)
        lines = _relaxed_lines(message[start:end])
        text = lines.rstrip(b"\r\n")
        if text:  # else empty lines, which count only if others follow
            hashed.update(line_ends)
            hashed.update(text)
            line_ends, is_empty = b"", False
        line_ends += lines[len(text) :]
        start = end
        breathe()
    if not is_empty:
        hashed.update(b"\r\n")
    return hashed.digest()


def _relaxed_lines(lines: bytes) -> bytes:
    lines = lines.replace(b"\t", b" ")
    while b"  " in lines:  # halves each run, and lines have at most 998 octets
        lines = lines.replace(b"  ", b" ")
    return lines.replace(b" \r\n", b"\r\n")


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")
