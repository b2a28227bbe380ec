"""The routes file (`MAIL_ROUTES_FILE`): next hops of their own for some recipient domains, in TOML.

One table a hop, `[hop.NAME]`; `[hop.default]`, if there is one, takes the place of `MAIL_SMTP_ADDR` and its kin. Each key
is declared once, as an annotated field of `HopSettings`: how it is written, its meaning, its default. `read_routes`
judges the file whole and returns every problem at once; no message repeats a secret. Paths are relative to the file's own
folder. Called by `mailkeep.settings` alone; it opens no connection and runs no command.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import msgspec

from mailkeep.core.address import AddressError, is_reserved, is_sinkhole, parse_mailbox
from mailkeep.settings.files import certificate_fits, read_bounded, read_secret
from mailkeep.settings.notation import (
    AUTHORITIES,
    BOOL,
    CONNECT,
    FILE,
    HELO_NAME,
    IP_ADDRESS,
    SECRET,
    SHA256,
    TEXT,
    Endpoint,
    Notation,
    Secret,
    Setting,
    choice,
    duration,
    rate,
    whole,
)

DEFAULT_HOP: Final = "default"
SINKHOLE_HOP: Final = "sinkhole"
WILDCARD: Final = "*."
MAX_FILE_BYTES: Final = 1024 * 1024  # room for 30,000 domains
MAX_HOPS: Final = 100
"""Each hop is looked at for each class whenever a worker is free; more would cost more than the sending."""
MAX_ADDRESSES: Final = 16  # one relay's servers, not a country's
MAX_CONNECTIONS: Final = 10_000
MAX_WEIGHT: Final = 100
MAX_PRIORITY: Final = 1000
TIMERS: Final = (
    "connect",
    "greeting",
    "ehlo",
    "starttls",
    "auth",
    "mail",
    "rcpt",
    "data",
    "block",
    "dot",
    "quit",
    "session",
)
_HOP_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")  # it stands in rows, metrics and log lines
_TIMER: Final = duration("100ms", "1h")


class SmtpTls(StrEnum):
    """How the session with the next hop is encrypted (RFC 3207, RFC 8314)."""

    STARTTLS = "starttls"
    IMPLICIT = "implicit"
    OPPORTUNISTIC = "opportunistic"
    NONE = "none"


class HopAuth(StrEnum):
    """How a login is proved (RFC 4616, RFC 2195, RFC 7628)."""

    PLAIN = "plain"
    LOGIN = "login"
    CRAM_MD5 = "cram-md5"
    XOAUTH2 = "xoauth2"
    OAUTHBEARER = "oauthbearer"

    @property
    def needs_token(self) -> bool:
        """Whether a token proves it rather than a password."""
        return self in {HopAuth.XOAUTH2, HopAuth.OAUTHBEARER}


class HopAddress(msgspec.Struct, frozen=True):
    """One server of a hop: the lowest priority is tried first, equal ones are shared by weight."""

    endpoint: Endpoint
    priority: int = 0
    weight: int = 1

    def __str__(self) -> str:
        plain = self.priority == 0 and self.weight == 1
        return str(self.endpoint) if plain else f"{self.endpoint} ({self.priority}/{self.weight})"


def _read_address(value: object) -> HopAddress:
    if isinstance(value, str):
        return HopAddress(CONNECT.read(value))
    if not isinstance(value, dict) or not {"addr"} <= value.keys() <= {"addr", "priority", "weight"}:
        raise ValueError('each must be "host:port" or { addr = "host:port", priority = 0, weight = 1 }')
    return HopAddress(
        CONNECT.read(str(value["addr"])),
        whole(0, MAX_PRIORITY).read(str(value.get("priority", 0))),
        whole(1, MAX_WEIGHT).read(str(value.get("weight", 1))),
    )


def _read_domain(text: str) -> str:
    wildcard = WILDCARD if text.startswith(WILDCARD) else ""
    try:
        # Below a wildcard there is always one label more, so that "*.org" is one too.
        mailbox = parse_mailbox(f"x@{'a.' if wildcard else ''}{text.removeprefix(wildcard)}")
    except AddressError:
        mailbox = None
    if mailbox is None or mailbox.local != "x" or mailbox.display:
        raise ValueError(f"{text!r} is no domain; write example.org, or *.example.org for all below it")
    domain = mailbox.domain
    if is_sinkhole(domain):
        raise ValueError(f"{text!r} goes to MAIL_SINKHOLE_ADDR and nowhere else")
    if is_reserved(domain):
        raise ValueError(f"{text!r} is reserved (RFC 2606): its mail is never taken in")
    return wildcard + domain.removeprefix("a." if wildcard else "")


def _read_timers(value: Any) -> dict[str, float]:  # noqa: ANN401 - a TOML table
    if unknown := value.keys() - set(TIMERS):
        raise ValueError(f"{min(unknown)!r} is no timer; there are {', '.join(TIMERS)}")
    return {name: _TIMER.read(str(text)) for name, text in value.items()}


def _show_timers(timers_s: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_TIMER.show(limit_s)}" for name, limit_s in timers_s.items())


_ADDRESS: Final = Notation("host:port, or table of addr, priority, weight", _read_address)
_DOMAIN: Final = Notation("example.org or *.example.org", _read_domain)
_TIMERS: Final = Notation(f"table of durations: {', '.join(TIMERS)}", _read_timers, _show_timers)


class Key(Setting, frozen=True):
    """The declaration of one key. `kind` is its TOML type (`object`: string or table); `many`: a list of up to so many."""

    kind: type = str
    many: int = 0

    def read(self, value: object, folder: Path) -> Any:  # noqa: ANN401 - what it is, the notation knows
        """Return what `value` means, paths in it relative to `folder`. Raises ValueError."""
        if not self.many:
            return self._read_one(value, folder)
        if not isinstance(value, list) or not 0 < len(value) <= self.many:
            raise ValueError(f"must be a list of 1 to {self.many}")
        return tuple(self._read_one(one, folder) for one in value)

    def show(self, value: Any) -> str:  # noqa: ANN401 - likewise
        """Return `value` as `mailkeep config` shows it."""
        return ", ".join(map(self.notation.show, value)) if self.many else self.notation.show(value)

    def _read_one(self, value: Any, folder: Path) -> Any:  # noqa: ANN401 - likewise
        if type(value) not in _TYPES[self.kind]:
            raise ValueError(f"must be {_WORDS[self.kind]}")
        if self.kind in {bool, dict, object}:
            return value if self.kind is bool else self.notation.read(value)
        return self.notation.read(str(folder / value if self.notation in {FILE, AUTHORITIES} else value))


_TYPES: Final[Mapping[type, tuple[type, ...]]] = {
    str: (str,),
    int: (int,),
    float: (int, float),
    bool: (bool,),
    dict: (dict,),
    object: (str, dict),
}
_WORDS: Final[Mapping[type, str]] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    object: "a string or a table",
}


class HopSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One next hop, as the routes file or the `MAIL_SMTP_*` settings describe it. To add a key, add one field."""

    name: str
    given: frozenset[str] = frozenset()
    """The keys that the file set."""
    password: Secret | None = None
    """What `password_file` or `password_env` holds."""

    domains: Annotated[
        tuple[str, ...],
        Key(_DOMAIN, "The recipient domains it takes.", unset="all that no other hop takes", many=10_000),
    ] = ()
    addresses: Annotated[
        tuple[HopAddress, ...],
        Key(
            _ADDRESS,
            "Its servers. The lowest `priority` is tried first, equal ones are shared by `weight`.",
            kind=object,
            many=MAX_ADDRESSES,
        ),
    ] = ()
    tls: Annotated[
        SmtpTls,
        Key(choice(SmtpTls), "Encryption.", unset="starttls; none where every address is on loopback"),
    ] = SmtpTls.STARTTLS
    tls_verify: Annotated[
        bool, Key(BOOL, "Whether certificate chain and host name must be right.", unset="true", kind=bool)
    ] = True
    tls_ca_file: Annotated[
        Path | None, Key(AUTHORITIES, "Authorities to trust (PEM).", unset="the system's")
    ] = None
    tls_fingerprints: Annotated[
        tuple[str, ...],
        Key(
            SHA256,
            "The server's certificate must be one of these, whoever signed it and whatever names it has.",
            unset="no pin",
            many=8,
        ),
    ] = ()
    tls_client_certificate: Annotated[
        Path | None, Key(FILE, "Certificate to show, with its chain (PEM).", unset="none")
    ] = None
    tls_client_key: Annotated[
        Path | None, Key(FILE, "Its private key (PEM).", unset="in the file of the certificate")
    ] = None
    username: Annotated[str | None, Key(TEXT, "Login.", unset="no login")] = None
    password_file: Annotated[Path | None, Key(FILE, "File that holds the password.", unset="none")] = None
    password_env: Annotated[
        str | None, Key(TEXT, "Environment variable that holds the password.", unset="none")
    ] = None
    token_command: Annotated[
        tuple[Secret, ...],
        Key(SECRET, "Program and arguments that print an access token (OAuth 2.0).", unset="none", many=64),
    ] = ()
    token_ttl_s: Annotated[
        float,
        Key(duration("1s", "1d"), "How long a token is used unless it is refused sooner.", unset="5m"),
    ] = 300.0
    auth: Annotated[
        tuple[HopAuth, ...],
        Key(
            choice(HopAuth),
            "Ways to log in; the first that is offered is taken.",
            unset="plain, login, cram-md5; with a token oauthbearer, xoauth2",
            many=len(HopAuth),
        ),
    ] = ()
    auth_without_tls: Annotated[
        bool,
        Key(BOOL, "Whether to log in although nobody proved who the server is.", unset="false", kind=bool),
    ] = False
    max_connections: Annotated[
        int | None,
        Key(
            whole(1, MAX_CONNECTIONS),
            "Open connections of a process.",
            unset="MAIL_SMTP_MAX_CONNECTIONS",
            kind=int,
        ),
    ] = None
    messages_per_connection: Annotated[
        int, Key(whole(1, 100_000), "Messages before a connection is replaced.", unset="100", kind=int)
    ] = 100
    messages_per_s: Annotated[
        float | None,
        Key(rate(0.01, 10_000, "messages"), "Messages a second of a process.", unset="no limit", kind=float),
    ] = None
    source_address: Annotated[
        str | None, Key(IP_ADDRESS, "Address of this machine to connect from.", unset="any")
    ] = None
    helo_name: Annotated[str | None, Key(HELO_NAME, "Name given in EHLO.", unset="MAIL_SMTP_HELO_NAME")] = (
        None
    )
    timers_s: Annotated[
        dict[str, float],
        Key(_TIMERS, "Time for each phase.", unset="usual ones, within MAIL_SMTP_TIMEOUT", kind=dict),
    ] = msgspec.field(default_factory=dict)

    @property
    def is_loopback(self) -> bool:
        """Whether nobody but this machine can be at the other end."""
        return all(address.endpoint.is_loopback for address in self.addresses)

    @property
    def has_login(self) -> bool:
        """Whether it says who we are."""
        return bool(self.username or self.password or self.token_command)

    @property
    def is_proved(self) -> bool:
        """Whether the other end must prove who it is."""
        encrypted = self.tls in {SmtpTls.STARTTLS, SmtpTls.IMPLICIT}
        return encrypted and (self.tls_verify or bool(self.tls_fingerprints))


KEYS: Final[dict[str, tuple[str, Key]]] = {
    field.removesuffix("_s") if field in {"token_ttl_s", "timers_s"} else field: (field, hint.__metadata__[0])
    for field, hint in get_type_hints(HopSettings, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
"""Each key of a hop's table: its field and its declaration. As in settings, a duration's key has no unit."""


def describe_hop(hop: HopSettings) -> Iterator[tuple[str, str, Key]]:
    """Yield name, value and declaration of each key that the file set; secrets are not among them."""
    for name, (field, key) in KEYS.items():
        if name in hop.given:
            yield f"hop.{hop.name}.{name}", key.show(getattr(hop, field)), key


def read_routes(path: Path, environ: Mapping[str, str]) -> tuple[tuple[HopSettings, ...], list[str]]:
    """Return the hops that the file gives, and everything that is wrong with it."""
    try:
        tables = _tables(path)
    except ValueError as fault:
        return (), [str(fault)]
    hops, problems = [], []
    for name, table in tables.items():
        hop, faults = _read_hop(name, table, path.parent, environ)
        hops.append(hop)
        problems += [f"hop.{name}{fault}" for fault in faults]
    return tuple(hops), problems + list(_doubled_domains(hops))


def _tables(path: Path) -> dict[str, dict[str, object]]:
    try:
        document = tomllib.loads(read_bounded(path, MAX_FILE_BYTES))
    except tomllib.TOMLDecodeError as fault:
        raise ValueError(f"is not TOML: {fault}") from None
    tables = document.get("hop")
    if document.keys() != {"hop"} or not isinstance(tables, dict):
        raise ValueError("must have tables [hop.NAME] and nothing else")
    if not 0 < len(tables) <= MAX_HOPS:
        raise ValueError(f"must have 1 to {MAX_HOPS} hops")
    for name, table in tables.items():
        if not _HOP_NAME.fullmatch(name) or name == SINKHOLE_HOP or not isinstance(table, dict):
            raise ValueError(
                f"{name!r} is no name for a hop: up to 32 of a-z, 0-9, _ and -, and not {SINKHOLE_HOP!r}"
            )
    return tables


def _read_hop(
    name: str, table: Mapping[str, object], folder: Path, environ: Mapping[str, str]
) -> tuple[HopSettings, list[str]]:
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for key_name, value in table.items():
        field, key = KEYS.get(key_name, ("", None))
        if key is None:
            close = difflib.get_close_matches(key_name, KEYS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            problems[key_name] = f"is not a key of a hop{hint}"
            continue
        try:
            values[field] = key.read(value, folder)
        except ValueError as fault:
            problems[key_name] = str(fault)
    hop = HopSettings(name=name, given=frozenset(table), **values)
    if "tls" not in table and "addresses" in values and hop.is_loopback:
        hop = msgspec.structs.replace(hop, tls=SmtpTls.NONE)
    try:
        hop = msgspec.structs.replace(hop, password=_password(hop, environ))
    except ValueError as fault:
        key_name = "password_file" if hop.password_file else "password_env"
        problems[key_name] = str(fault)
    broken = [
        f".{rule.keys[0]}: {rule.message}"
        for rule in _RULES
        if problems.keys().isdisjoint(rule.keys) and rule.broken(hop)
    ]
    return hop, [f".{key_name}: {fault}" for key_name, fault in problems.items()] + broken


def _password(hop: HopSettings, environ: Mapping[str, str]) -> Secret | None:
    if hop.password_file is not None:
        text = read_secret(hop.password_file)
    elif hop.password_env is not None:
        text = environ.get(hop.password_env, "")
        if not text:
            raise ValueError(f"{hop.password_env} is not in the environment")
    else:
        return None
    try:
        return Secret(TEXT.read(text))
    except ValueError:
        raise ValueError("the password contains a control character or line break") from None


def _doubled_domains(hops: list[HopSettings]) -> Iterator[str]:
    holders: dict[str, str] = {}
    for hop in hops:
        for domain in hop.domains:
            holder = holders.setdefault(domain, hop.name)
            if holder != hop.name:
                yield f"hop.{hop.name}.domains: {domain} is one of hop.{holder} already"


class _Rule(msgspec.Struct, frozen=True):
    """What must hold between keys. Reported under the first; not judged if one of them is unreadable."""

    keys: tuple[str, ...]
    broken: Callable[[HopSettings], bool]
    message: str


_TLS_KEYS: Final = frozenset(name for name in KEYS if name.startswith("tls_"))

_RULES: Final = (
    _Rule(("addresses",), lambda hop: not hop.addresses, "is required"),
    _Rule(
        ("domains",),
        lambda hop: bool(hop.domains) == (hop.name == DEFAULT_HOP),
        f"is required, but not for [hop.{DEFAULT_HOP}], which takes all that no other hop takes",
    ),
    _Rule(
        ("username", "password_file", "password_env", "token_command"),
        lambda hop: (
            bool(hop.username) != bool(hop.given & {"password_file", "password_env", "token_command"})
        ),
        "goes with one of password_file, password_env and token_command",
    ),
    _Rule(
        ("password_file", "password_env", "token_command"),
        lambda hop: len(hop.given & {"password_file", "password_env", "token_command"}) > 1,
        "is one of three ways to log in; drop the others",
    ),
    _Rule(
        ("token_ttl", "token_command"),
        lambda hop: "token_ttl" in hop.given and not hop.token_command,
        "needs token_command",
    ),
    _Rule(
        ("auth", "username", "password_file", "password_env", "token_command"),
        lambda hop: (
            bool(hop.auth)
            and (not hop.has_login or any(way.needs_token != bool(hop.token_command) for way in hop.auth))
        ),
        "must fit the login: plain, login and cram-md5 need a password, xoauth2 and oauthbearer a token_command",
    ),
    _Rule(
        ("auth_without_tls", "addresses", "tls", "tls_verify", "tls_fingerprints"),
        lambda hop: hop.has_login and not (hop.is_proved or hop.is_loopback or hop.auth_without_tls),
        "must be true to log in where tls is not starttls or implicit, or the certificate is not verified",
    ),
    _Rule(
        ("tls", "addresses", *sorted(_TLS_KEYS)),
        lambda hop: hop.tls is SmtpTls.NONE and bool(hop.given & _TLS_KEYS),
        "is none, which leaves no meaning to the other tls_ keys",
    ),
    _Rule(
        ("tls_fingerprints", "tls_verify", "tls_ca_file"),
        lambda hop: bool(hop.tls_fingerprints) and bool(hop.given & {"tls_verify", "tls_ca_file"}),
        "says all about the certificate; drop tls_verify and tls_ca_file",
    ),
    _Rule(
        ("tls_ca_file", "tls_verify"),
        lambda hop: hop.tls_ca_file is not None and not hop.tls_verify,
        "has no meaning when tls_verify is false",
    ),
    _Rule(
        ("tls_client_key", "tls_client_certificate"),
        lambda hop: hop.tls_client_key is not None and hop.tls_client_certificate is None,
        "needs tls_client_certificate",
    ),
    _Rule(
        ("tls_client_certificate", "tls_client_key"),
        lambda hop: (
            hop.tls_client_certificate is not None
            and not certificate_fits(hop.tls_client_certificate, hop.tls_client_key)
        ),
        "can't be used with its key: both PEM, of one pair, the key without a passphrase",
    ),
)
