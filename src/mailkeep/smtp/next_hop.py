"""The next hop: where mail is handed to, as configured. A value; whoever opens connections reads it."""

import re
from enum import StrEnum
from typing import Final

import msgspec

from mailkeep.core.outcome import Phase

_HELO_NAME: Final = re.compile(r"[A-Za-z0-9.-]{1,255}|\[[A-Za-z0-9.:]{1,253}\]")

_UNSENDABLE: Final = re.compile(r"[\x00\ud800-\udfff]")


class TlsMode(StrEnum):
    """How the connection is protected."""

    NONE = "none"  # in clear; a login is sent only to a loopback address
    OPPORTUNISTIC = "opportunistic"  # STARTTLS if the server takes it; a login needs it to
    STARTTLS = "starttls"  # STARTTLS, or no mail
    IMPLICIT = "implicit"  # TLS from the first byte (RFC 8314 section 3.3)


class Timers(msgspec.Struct, frozen=True):
    """Seconds allowed for each phase (RFC 5321 section 4.5.3.2): for a whole reply, never for one read."""

    connect_s: float = 10.0  # each address of the host
    greeting_s: float = 60.0
    ehlo_s: float = 60.0
    starttls_s: float = 30.0  # the command, then again the handshake
    auth_s: float = 30.0
    mail_s: float = 60.0
    rcpt_s: float = 60.0
    data_s: float = 120.0
    block_s: float = 60.0  # until the network took one block of the body
    dot_s: float = 600.0  # each second cut here makes unknown outcomes
    quit_s: float = 2.0  # QUIT or RSET, which nobody waits for
    session_s: float = (
        1800.0  # all of an attempt over one connection but the answer to the dot: ends a tarpit
    )

    def __post_init__(self) -> None:
        """Refuse a timer that would never let a server answer."""
        if any(limit_s <= 0 for limit_s in msgspec.structs.astuple(self)):
            raise ValueError("each timer must be longer than zero")

    def capped(self, cap_s: float, dot_s: float) -> "Timers":
        """Return these timers with every phase cut to `cap_s` but the final dot, which gets `dot_s`."""
        cut = {name: min(limit_s, cap_s) for name, limit_s in msgspec.structs.asdict(self).items()}
        return Timers(**(cut | {"dot_s": dot_s, "session_s": self.session_s}))

    def by_phase(self) -> dict[Phase, float]:
        """Return the limit of each phase in seconds."""
        return {
            Phase.CONNECT: self.connect_s,
            Phase.GREETING: self.greeting_s,
            Phase.EHLO: self.ehlo_s,
            Phase.STARTTLS: self.starttls_s,
            Phase.TLS: self.starttls_s,
            Phase.AUTH: self.auth_s,
            Phase.MAIL: self.mail_s,
            Phase.RCPT: self.rcpt_s,
            Phase.DATA: self.data_s,
            Phase.BODY: self.block_s,
            Phase.DOT: self.dot_s,
            Phase.QUIT: self.quit_s,
        }


class AuthMechanism(StrEnum):
    """A way to log in, as EHLO names it."""

    PLAIN = "PLAIN"  # RFC 4616
    LOGIN = "LOGIN"  # obsolete, and all that some servers offer
    CRAM_MD5 = "CRAM-MD5"  # RFC 2195: shows no password, and proves little else
    XOAUTH2 = "XOAUTH2"  # what there was before RFC 7628
    OAUTHBEARER = "OAUTHBEARER"  # RFC 7628

    @property
    def needs_token(self) -> bool:
        """Whether an access token proves it rather than a password."""
        return self in {AuthMechanism.XOAUTH2, AuthMechanism.OAUTHBEARER}


class HopAddress(msgspec.Struct, frozen=True):
    """One server of a hop: the lowest `priority` is tried first, equal ones are shared by `weight`."""

    host: str
    port: int
    priority: int = 0
    weight: int = 1

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NextHop(msgspec.Struct, frozen=True):
    """One next hop. `name` identifies it in routes, rows, metrics and logs; `domains` are routed to it (`Routes`).

    `ca_file` replaces the system's authorities; `fingerprints` (SHA-256 of the certificate, lower-case hexadecimal) replace
    authorities and name. A login is a `username` with a `password` or with a `token_command` that prints a token.
    """

    name: str
    addresses: tuple[HopAddress, ...]
    tls: TlsMode = TlsMode.STARTTLS
    helo_name: str = "localhost"
    username: str | None = None
    password: str | None = None
    token_command: tuple[str, ...] = ()
    token_ttl_s: float = 300.0
    auth: tuple[AuthMechanism, ...] = ()  # empty: the usual ones
    auth_without_tls: bool = False
    verify: bool = True
    ca_file: str | None = None
    fingerprints: tuple[str, ...] = ()
    client_certificate: str | None = None
    client_key: str | None = None
    max_connections: int = 8
    messages_per_connection: int = 100  # many servers allow about this many
    messages_per_s: float | None = None
    source_address: str | None = None
    timers: Timers = Timers()
    domains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what could never work or would break a command."""
        if not _HELO_NAME.fullmatch(self.helo_name):
            raise ValueError("helo_name must be a host name or an address literal")
        if (self.username is None) != (self.password is None and not self.token_command):
            raise ValueError("username goes with a password or a token_command")
        if _UNSENDABLE.search(f"{self.username}{self.password}"):
            raise ValueError("username and password must be UTF-8 text without NUL")
        if any(mechanism.needs_token != bool(self.token_command) for mechanism in self.auth):
            raise ValueError("each way to log in must fit what there is to show, a password or a token")
        if not self.addresses or not all(0 < address.port < 65536 for address in self.addresses):
            raise ValueError("a next hop needs an address, and ports are 1 to 65535")
        if min(self.max_connections, self.messages_per_connection, self.messages_per_s or 1) <= 0:
            raise ValueError("limits must be more than zero")

    @property
    def proves_itself(self) -> bool:
        """Whether a server must prove over TLS who it is."""
        return self.verify or bool(self.fingerprints)

    def __repr__(self) -> str:
        """Show where it is, never how we log in."""
        return f"NextHop({self.name!r}, {', '.join(map(str, self.addresses))}, {self.tls.value!r})"
