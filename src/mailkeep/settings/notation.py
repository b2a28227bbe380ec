"""How settings are written, and the values they are read into.

A `Notation` is one kind of value: its words for the reference page, how to read it and how to show it. Readers raise
ValueError with a message that follows the setting's name ("must be true or false"); those of secrets never repeat what
they read. Called by `mailkeep.settings` alone.
"""

import hmac
import ipaddress
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from mailkeep.core.address import Mailbox, check_printable, parse_mailbox
from mailkeep.core.duration import format_duration, parse_duration, parse_ladder
from mailkeep.settings.files import check_authorities
from mailkeep.settings.senders import read_senders

MAX_RUNGS: Final = 50  # the longest ladder in use (relay) has 10
MIN_TOKEN_CHARS: Final = 16  # shorter bearer tokens can be guessed
_HOST: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_HELO_NAME: Final = re.compile(r"[A-Za-z0-9.-]{1,255}|\[[A-Za-z0-9.:]{1,253}\]")
_CERTIFICATE_NAME: Final = re.compile(r"(dns|uri):[\x21-\x2b\x2d-\x7e]+")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_TOKEN: Final = re.compile(rf"[\x21-\x7e]{{{MIN_TOKEN_CHARS},}}")
_AUTHORITY: Final = re.compile(r"([^/?#]*)([^?#]*).*", re.DOTALL)
_PLACE: Final = re.compile(r"(?:\[[0-9A-Za-z:.%]+\]|[^:\[\]\s]*)(?::([0-9]{1,5}))?")
_DSN_PASSWORD: Final = re.compile(r"(//[^:/@]*):.*@|([?&][a-z]*pass[a-z]*=)[^&]*")


class Secret:
    """Text that shows itself only to who asks for it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._text

    def __str__(self) -> str:
        return "***"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)


class Dsn(Secret):
    """A connection URL: shown, but for the password in it."""

    __slots__ = ()

    def __str__(self) -> str:
        return _DSN_PASSWORD.sub(lambda hit: f"{hit[1]}:***@" if hit[1] else f"{hit[2]}***", self._text)

    @property
    def place(self) -> str:
        """Where it leads, without a user: fit for logs, where whatever looks like an address is masked."""
        return re.sub(r"//[^/]*@", "//", str(self))


class Endpoint(msgspec.Struct, frozen=True):
    """Where to connect or listen: a host with a port, or (Redis only) the path of a Unix socket with port 0."""

    host: str
    port: int

    @property
    def connect_host(self) -> str:
        """The host under which who listens here is reached: loopback, if it listens on all addresses."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  # never listened on

    @property
    def is_socket(self) -> bool:
        """Whether `host` is the path of a Unix socket."""
        return self.host.startswith("/")

    @property
    def is_loopback(self) -> bool:
        """Whether nobody but this machine can be at the other end."""
        if self.is_socket or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.is_socket:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Notation(msgspec.Struct, frozen=True):
    """One kind of value: in words, how to read it (ValueError if it can't be), how to show it.

    A `secret` one may also come from a file.
    """

    words: str
    read: Callable[[str], Any]
    show: Callable[[Any], str] = str
    secret: bool = False


class Setting(msgspec.Struct, frozen=True):
    """The declaration of one setting; `unset` says what its absence means where the default is None or empty."""

    notation: Notation
    meaning: str
    unset: str = "unset"


def whole(least: int, most: int, unit: str = "") -> Notation:
    """Return the notation of a whole number in [least, most]."""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return Notation(f"{unit or 'number'}, {least} to {most}", read)


def rate(least: float, most: float, unit: str) -> Notation:
    """Return the notation of a number of so many a second, in [least, most]."""

    def read(text: str) -> float:
        per_s = float(text)  # "nan" is in no range
        if not least <= per_s <= most:
            raise ValueError(f"must be from {least:g} to {most:g}")
        return per_s

    return Notation(f"{unit} a second, {least:g} to {most:g}", read, lambda per_s: f"{per_s:g}")


def duration(least: str, most: str) -> Notation:
    """Return the notation of a duration in [least, most], read into seconds."""

    def read(text: str) -> float:
        seconds = parse_duration(text)
        if not parse_duration(least) <= seconds <= parse_duration(most):
            raise ValueError(f"must be from {least} to {most}")
        return seconds

    return Notation(f"duration, {least} to {most}", read, format_duration)


def choice(kind: type[StrEnum]) -> Notation:
    """Return the notation of one of the members of `kind`, in any letter case."""

    def read(text: str) -> StrEnum:
        try:
            return kind(text.lower())
        except ValueError:
            raise ValueError(f"must be one of: {', '.join(kind)}") from None

    return Notation(" | ".join(kind), read)


def _endpoint(least_port: int) -> Callable[[str], Endpoint]:
    def read(text: str) -> Endpoint:
        host, _, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = str(ipaddress.IPv6Address(host[1:-1]))
        elif not _HOST.fullmatch(host):
            raise ValueError("must be host:port, like 127.0.0.1:8080 or [::1]:8080")
        return Endpoint(host, whole(least_port, 65535).read(port))

    return read


def _endpoint_or_socket(text: str) -> Endpoint:
    return Endpoint(text, 0) if text.startswith("/") else _endpoint(1)(text)


def _endpoints(text: str) -> tuple[Endpoint, ...]:
    read = _endpoint(1)
    return tuple(read(part.strip()) for part in text.split(","))


def _text(text: str) -> str:
    check_printable(text)
    return text


def _bool(text: str) -> bool:
    try:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
    except KeyError:
        raise ValueError("must be true or false") from None


def _url(example: str, *schemes: str) -> Callable[[str], Dsn]:
    def read(text: str) -> Dsn:
        if not text.startswith(schemes):
            raise ValueError(f"must be a URL like {example}")
        if not _has_places(text):
            raise ValueError(
                "has no host and port that can be; in a password / ? # @ : and % are written percent-encoded"
            )
        return Dsn(text)

    return read


def _has_places(url: str) -> bool:
    """Return whether a connection URL names hosts: else a driver takes a part of the password for one, and tells it."""
    authority, path = _AUTHORITY.fullmatch(url.partition("://")[2]).group(1, 2)  # type: ignore[union-attr]  # it matches all
    places = [_PLACE.fullmatch(place) for place in authority.rpartition("@")[2].split(",")]
    return (
        authority.count("@") <= 1
        and "@" not in path
        and all(place is not None and int(place[1] or 0) <= 65535 for place in places)
    )


def _issuer(text: str) -> str:
    parts = urlsplit(text)
    is_local = parts.scheme == "http" and parts.hostname in {"127.0.0.1", "::1", "localhost"}
    if not ((parts.scheme == "https" and parts.hostname) or is_local) or parts.query or parts.fragment:
        raise ValueError("must be a URL like https://login.example.org, without query and fragment")
    return text


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.split(r"[\s,]+", _text(text).strip()))


def _senders_file(text: str) -> Path:
    path: Path = FILE.read(text)
    read_senders(path)
    return path


def _tokens(text: str) -> tuple[Secret, ...]:
    tokens = re.split(r"[\s,]+", text.strip())
    if not all(map(_TOKEN.fullmatch, tokens)):
        raise ValueError(f"must hold tokens of at least {MIN_TOKEN_CHARS} visible ASCII characters")
    return tuple(map(Secret, tokens))


def _certificate_names(text: str) -> tuple[str, ...]:
    names = tuple(re.split(r"[\s,]+", text.strip()))
    if not all(map(_CERTIFICATE_NAME.fullmatch, names)):
        raise ValueError("must hold names like dns:orders.internal or uri:spiffe://example.org/orders")
    return tuple(name.lower() if name.startswith("dns:") else name for name in names)


def _email(text: str) -> Mailbox:
    mailbox = parse_mailbox(text)
    if mailbox.display:
        raise ValueError("must be a bare address; the name has its own setting")
    return mailbox


def _ladder(text: str) -> tuple[float, ...]:
    waits_s = parse_ladder(text)
    if len(waits_s) > MAX_RUNGS:
        raise ValueError(f"has more than {MAX_RUNGS} rungs")
    return waits_s


def _helo_name(text: str) -> str:
    if not _HELO_NAME.fullmatch(text):
        raise ValueError("must be a host name or an address literal like [192.0.2.1]")
    return text


def _ip_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("must be an IP address") from None


def _sha256(text: str) -> str:
    digest = text.replace(":", "").lower()
    if not _SHA256.fullmatch(digest):
        raise ValueError("must be a SHA-256 fingerprint: 64 hexadecimal digits, with or without colons")
    return digest


def _authorities(text: str) -> Path:
    path: Path = FILE.read(text)
    check_authorities(path)
    return path


def _existing(present: Callable[[Path], bool], what: str) -> Callable[[str], Path]:
    def read(text: str) -> Path:
        path = Path(text)
        if not present(path):
            raise ValueError(f"{text!r} is not {what} that can be read")
        return path

    return read


TEXT: Final = Notation("text", _text)
BOOL: Final = Notation("true | false", _bool, lambda value: str(value).lower())
LISTEN: Final = Notation("host:port (0: any free port)", _endpoint(0))
CONNECT: Final = Notation("host:port", _endpoint(1))
CONNECT_OR_SOCKET: Final = Notation("host:port or /path/of/socket", _endpoint_or_socket)
CONNECT_MANY: Final = Notation(
    "host:port, comma between", _endpoints, lambda endpoints: ", ".join(map(str, endpoints))
)
EMAIL: Final = Notation("address", _email, lambda mailbox: mailbox.address)
LADDER: Final = Notation(
    "durations, comma between", _ladder, lambda waits_s: ", ".join(map(format_duration, waits_s))
)
HTTPS_URL: Final = Notation("https:// URL", _issuer)
WORDS: Final = Notation("words, comma or space between", _words, ", ".join)
FOLDER: Final = Notation("path", _existing(Path.is_dir, "a folder"))
FILE: Final = Notation("path", _existing(Path.is_file, "a file"))
SENDERS_FILE: Final = Notation("path", _senders_file)
AUTHORITIES: Final = Notation("path", _authorities)
CERTIFICATE_NAMES: Final = Notation("dns:… or uri:…, comma or space between", _certificate_names, ", ".join)
HELO_NAME: Final = Notation("host name or [address]", _helo_name)
IP_ADDRESS: Final = Notation("IP address", _ip_address)
SHA256: Final = Notation("SHA-256 fingerprint in hexadecimal", _sha256)
DSN: Final = Notation(
    "postgresql:// URL",
    _url("postgresql://user:password@host/database", "postgresql://", "postgres://"),
    secret=True,
)
REDIS_URL: Final = Notation("redis:// URL", _url("redis://host:6379/0", "redis://", "rediss://", "unix://"))
PATH: Final = Notation("path", lambda text: Path(_text(text)))
SECRET: Final = Notation("text", lambda text: Secret(_text(text)), secret=True)
TOKENS: Final = Notation(
    f"tokens of {MIN_TOKEN_CHARS} characters or more, comma or space between",
    _tokens,
    lambda tokens: ", ".join(map(str, tokens)),
    secret=True,
)
