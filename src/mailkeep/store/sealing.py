"""Payloads at rest, sealed: AES-256-GCM under named keys of which the newest seals and every one opens.

What is sealed is what a person would not want read: message, command, the addresses of sender and recipients, the raw fields of
malformed commands. Each delivery has a key of its own, derived from the named one (keyed BLAKE2b over its id), so that neither a
nonce drawn twice nor a row put in another's place goes unnoticed; the id and the kind of content are authenticated as well.
A sealed value names its key. What is not sealed opens as itself: rows from before there were keys stay readable, and
without keys nothing is sealed.

Bytes: 0x01, length of the key's name, the name, 12 bytes of nonce, ciphertext with tag. Neither a message nor the
MessagePack of raw fields can begin with 0x01. Text: `sealed:` and these bytes in base64; an address has an `@`.
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAX_KEYS: Final = 100
MAX_FILE_BYTES: Final = 64 * 1024
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")

_MARK: Final = 1
_TEXT: Final = "sealed:"
_PERSON: Final = b"mailkeep payload"  # 16 bytes, what BLAKE2b takes: no other use of the key gives the same


class Content(StrEnum):
    """What is sealed; one kind can't be passed off as another."""

    MESSAGE = "message"
    COMMAND = "command"
    RECIPIENT = "recipient"
    SENDER = "sender"
    RAW = "raw"


class PayloadKeysError(ValueError):
    """A file of keys that can't be used; the message never repeats a key."""


class SealedError(Exception):
    """A payload that can't be opened: its key is missing, or it was changed. The message names the key."""


class PayloadKey(msgspec.Struct, frozen=True):
    """A named key; `mark` tells two keys of one name apart and says nothing about the key."""

    name: str
    secret: bytes

    def __repr__(self) -> str:
        return f"PayloadKey({self.name!r})"

    @property
    def mark(self) -> bytes:
        """Eight bytes that no other key has."""
        return hashlib.blake2b(b"mark", digest_size=8, key=self.secret, person=_PERSON).digest()

    def cipher(self, owner: UUID) -> AESGCM:
        """Return the cipher of one delivery."""
        derived = hashlib.blake2b(owner.bytes, digest_size=KEY_BYTES, key=self.secret, person=_PERSON)
        return AESGCM(derived.digest())


class PayloadKeys:
    """The keys of this deployment, newest first; none: nothing is sealed."""

    def __init__(self, keys: Sequence[PayloadKey] = ()) -> None:
        self._keys = {key.name: key for key in keys}
        self.newest = keys[0] if keys else None

    @classmethod
    def load(cls, path: Path) -> "PayloadKeys":
        """Read a file with a key a line, newest first: `name:base64 of 32 bytes`. Raises `PayloadKeysError`."""
        try:
            text = path.read_bytes()[: MAX_FILE_BYTES + 1].decode()
        except OSError as fault:
            raise PayloadKeysError(f"can't be read: {fault.strerror}") from None
        except UnicodeDecodeError:
            raise PayloadKeysError("is not UTF-8 text") from None
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
        keys = [_read_key(number, line) for number, line in lines if line and not line.startswith("#")]
        if not keys or len(keys) > MAX_KEYS or len(text) > MAX_FILE_BYTES:
            raise PayloadKeysError(f"must hold 1 to {MAX_KEYS} keys, one a line")
        if len({key.name for key in keys}) < len(keys) or len({key.secret for key in keys}) < len(keys):
            raise PayloadKeysError("has a name or a key twice")
        return cls(keys)

    def __iter__(self) -> Iterator[PayloadKey]:
        return iter(self._keys.values())

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def get(self, name: str) -> PayloadKey | None:
        """Return the key of a name."""
        return self._keys.get(name)

    def seal(self, owner: UUID, kind: Content, content: bytes) -> bytes:
        """Return `content` sealed for the delivery `owner` by the newest key."""
        key = self.newest
        if key is None:
            return content
        nonce, name = os.urandom(NONCE_BYTES), key.name.encode()
        sealed = key.cipher(owner).encrypt(nonce, content, _context(owner, kind))
        return bytes((_MARK, len(name))) + name + nonce + sealed

    def open(self, owner: UUID, kind: Content, content: bytes) -> bytes:
        """Return what was sealed, or what never was. Raises `SealedError`."""
        name = sealed_by(content)
        if name is None:
            return content
        key = self._keys.get(name)
        if key is None:
            raise SealedError(f"sealed by the key {name}, which MAIL_PAYLOAD_KEYS_FILE does not have")
        nonce_at = 2 + len(name)
        nonce, sealed = content[nonce_at : nonce_at + NONCE_BYTES], content[nonce_at + NONCE_BYTES :]
        try:
            return key.cipher(owner).decrypt(nonce, sealed, _context(owner, kind))
        except (InvalidTag, ValueError):  # ValueError: cut within the nonce
            raise SealedError(f"sealed by another key than {name}, or changed") from None

    def seal_text(self, owner: UUID, kind: Content, text: str) -> str:
        """Return `text` sealed, as text."""
        if self.newest is None:
            return text
        return _TEXT + base64.b64encode(self.seal(owner, kind, text.encode())).decode()

    def open_text(self, owner: UUID, kind: Content, text: str) -> str:
        """Return what was sealed as text, or what never was. Raises `SealedError`."""
        if not text.startswith(_TEXT) or "@" in text:
            return text
        try:
            sealed = base64.b64decode(text.removeprefix(_TEXT), validate=True)
        except binascii.Error:
            raise SealedError("sealed, and changed") from None
        return self.open(owner, kind, sealed).decode()


def new_key(name: str) -> str:
    """Return the line of a new key. Raises `PayloadKeysError` for a name that can't be one."""
    if not NAME.fullmatch(name):
        raise PayloadKeysError("a key's name is up to 32 small letters, digits, dots, dashes and underscores")
    return f"{name}:{base64.b64encode(os.urandom(KEY_BYTES)).decode()}"


def sealed_by(content: bytes) -> str | None:
    """Return the name of the key that `content` is sealed by, None if it is not sealed."""
    if len(content) < 2 or content[0] != _MARK:
        return None
    return content[2 : 2 + content[1]].decode("ascii", "replace")


def _context(owner: UUID, kind: Content) -> bytes:
    return owner.bytes + kind.encode()


def _read_key(number: int, line: str) -> PayloadKey:
    name, colon, encoded = line.partition(":")
    try:
        secret = base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        secret = b""
    if not colon or not NAME.fullmatch(name) or len(secret) != KEY_BYTES:
        raise PayloadKeysError(f"line {number} is not name:key, the key {KEY_BYTES} bytes in base64")
    return PayloadKey(name, secret)
