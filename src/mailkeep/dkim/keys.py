"""The keys that sign: read from `MAIL_DKIM_KEYS_FILE` whole, with every problem at once; their DNS records; new ones.

    [[key]]
    domain = "example.org"        # of the sender; not of its subdomains
    selector = "2026a"
    key_file = "2026a.pem"        # PEM without passphrase, beside this file unless absolute
    not_before = 2026-12-01T00:00:00Z   # optional

Of the keys of a domain the one that began last signs, for each algorithm by itself: the next key takes over by its
`not_before`, and there is never a moment without one. RSA has 2048 to 4096 bits (RFC 8301 section 3.2). A problem never
repeats what stands in a key file. Called by `mailkeep.wiring` at start and by `mailkeep dkim`.
"""

import base64
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from mailkeep.core.address import AddressError, parse_mailbox
from mailkeep.dkim.signature import Algorithm, SigningKey
from mailkeep.settings.files import read_bounded

MAX_FILE_BYTES: Final = 256 * 1024  # a larger one is a mistaken path, neither keys nor their list
MAX_KEYS: Final = 1000  # more senders' domains than one deployment has
RSA_BITS: Final = range(2048, 4097)  # what every verifier can check (RFC 8301 section 3.2)
NEW_RSA_BITS: Final = 2048
TXT_CHARS: Final = 255  # one string of a TXT record (RFC 1035 section 3.3)
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_SELECTOR: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL}){{0,3}}")
_EVER: Final = datetime.min.replace(tzinfo=UTC)


class KeyState(StrEnum):
    """What a key does now."""

    SIGNING = "signing"
    WAITING = "waiting"  # for its `not_before`
    RETIRED = "retired"  # a later one of its algorithm has begun; its DNS record may still be needed


class DkimProblem(msgspec.Struct, frozen=True):
    """One thing wrong with the keys; `where` is `key 2`, or empty for the file as a whole."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class DkimKeysError(ValueError):
    """The keys can't be used; `problems` lists everything that is wrong with them."""

    def __init__(self, problems: tuple[DkimProblem, ...]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    domain: str
    selector: str
    key_file: str
    not_before: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class Keyring:
    """The keys of every sender's domain."""

    def __init__(self, keys: Iterable[SigningKey]) -> None:
        self.keys = tuple(keys)
        self._of_domain: dict[str, list[SigningKey]] = {}
        for key in sorted(self.keys, key=_beginning):
            self._of_domain.setdefault(key.domain, []).append(key)

    @classmethod
    def load(cls, path: Path) -> "Keyring":
        """Read the keys that `path` lists. Raises `DkimKeysError` with every problem in them."""
        entries = _entries(path)
        keys: list[SigningKey] = []
        problems: list[DkimProblem] = []
        for number, entry in enumerate(entries, start=1):
            try:
                keys.append(_key(msgspec.convert(entry, _Entry), path.parent))
            except ValueError as fault:
                problems.append(DkimProblem(f"key {number}", str(fault)))
        problems += _repeated(keys)
        if problems:
            raise DkimKeysError(tuple(problems))
        return cls(keys)

    def signing(self, domain: str, now: datetime) -> tuple[SigningKey, ...]:
        """Return the keys that sign for `domain` (a lower-case A-label) now: at most one of each algorithm."""
        begun = [key for key in self._of_domain.get(domain, ()) if _beginning(key) <= now]
        return tuple({key.algorithm: key for key in begun}.values())  # a later one replaces an earlier one

    def state(self, key: SigningKey, now: datetime) -> KeyState:
        """Return what `key`, one of these, does now."""
        if key in self.signing(key.domain, now):
            return KeyState.SIGNING
        return KeyState.WAITING if _beginning(key) > now else KeyState.RETIRED


def new_private_key(algorithm: Algorithm) -> RSAPrivateKey | Ed25519PrivateKey:
    """Make a private key: RSA of 2048 bits, or Ed25519."""
    if algorithm is Algorithm.ED25519:
        return Ed25519PrivateKey.generate()
    return generate_private_key(public_exponent=65537, key_size=NEW_RSA_BITS)


def as_pem(private_key: RSAPrivateKey | Ed25519PrivateKey) -> bytes:
    """Return a private key as it stands in a key file: PKCS #8 without passphrase."""
    return private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def check_name(domain: str, selector: str) -> str:
    """Return `domain` as a lower-case A-label. Raises ValueError unless a key can have this name."""
    try:
        mailbox = parse_mailbox(f"postmaster@{domain}")
    except AddressError:
        raise ValueError("domain is not the domain of a sender") from None
    if mailbox.local != "postmaster" or mailbox.display:
        raise ValueError("domain is not the domain of a sender")
    if not _SELECTOR.fullmatch(selector):
        raise ValueError("selector must be letters, digits and hyphens, like 2026a")
    return mailbox.domain


def record_name(key: SigningKey) -> str:
    """Return where in DNS the public half of `key` belongs (RFC 6376 section 3.6.2.1)."""
    return f"{key.selector}._domainkey.{key.domain}"


def record_value(key: SigningKey) -> str:
    """Return the text of its TXT record (RFC 6376 section 3.6.1; RFC 8463 section 4)."""
    if isinstance(key.private_key, RSAPrivateKey):
        kind = "rsa"
        public = key.private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    else:
        kind = "ed25519"
        public = key.private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"v=DKIM1; k={kind}; p={base64.b64encode(public).decode('ascii')}"


def record_line(key: SigningKey) -> str:
    """Return the record as a line of a zone file, its text in strings that are short enough."""
    value = record_value(key)
    strings = [f'"{value[start : start + TXT_CHARS]}"' for start in range(0, len(value), TXT_CHARS)]
    return f"{record_name(key)}. IN TXT {' '.join(strings)}"


def _beginning(key: SigningKey) -> datetime:
    return key.not_before or _EVER


def _entries(path: Path) -> list[object]:
    try:
        document = tomllib.loads(read_bounded(path, MAX_FILE_BYTES))
    except ValueError as fault:
        raise DkimKeysError((DkimProblem("", str(fault)),)) from None
    entries = document.pop("key", None)
    if document or not isinstance(entries, list) or not 0 < len(entries) <= MAX_KEYS:
        raise DkimKeysError((DkimProblem("", f"must hold 1 to {MAX_KEYS} tables [[key]] and nothing else"),))
    return entries


def _key(entry: _Entry, folder: Path) -> SigningKey:
    domain = check_name(entry.domain, entry.selector)
    return SigningKey(domain, entry.selector, _private_key(folder / entry.key_file), entry.not_before)


def _private_key(path: Path) -> RSAPrivateKey | Ed25519PrivateKey:
    try:
        pem = read_bounded(path, MAX_FILE_BYTES).encode()
    except ValueError as fault:
        raise ValueError(f"key_file {fault}") from None
    try:
        private_key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise ValueError("key_file has a passphrase; give the key without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("key_file holds no private key in PEM") from None
    match private_key:
        case RSAPrivateKey(key_size=bits) if bits not in RSA_BITS:
            raise ValueError(f"key_file holds an RSA key of {bits} bits; use 2048 to 4096")
        case RSAPrivateKey() | Ed25519PrivateKey():
            return private_key
        case _:
            raise ValueError("key_file holds a key that is neither RSA nor Ed25519")


def _repeated(keys: list[SigningKey]) -> Iterator[DkimProblem]:
    names = Counter(record_name(key).lower() for key in keys)
    beginnings = Counter((key.domain, key.algorithm, _beginning(key)) for key in keys)
    for name, count in names.items():
        if count > 1:
            yield DkimProblem(name, f"stands for {count} keys; give each a selector of its own")
    for (domain, algorithm, _), count in beginnings.items():
        if count > 1:
            yield DkimProblem(
                domain, f"{count} {algorithm} keys begin together; give the newer a later not_before"
            )
