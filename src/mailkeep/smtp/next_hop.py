"""The next hop: one SMTP server that mail is handed to, as configured. A value; whoever opens connections reads it."""

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

    def __post_init__(self) -> None:
        """Refuse a timer that would never let a server answer."""
        if any(limit_s <= 0 for limit_s in msgspec.structs.astuple(self)):
            raise ValueError("each timer must be longer than zero")

    def capped(self, cap_s: float, dot_s: float) -> "Timers":
        """Return these timers with every phase cut to `cap_s` but the final dot, which gets `dot_s`."""
        cut = {name: min(limit_s, cap_s) for name, limit_s in msgspec.structs.asdict(self).items()}
        return Timers(**(cut | {"dot_s": dot_s}))

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


class NextHop(msgspec.Struct, frozen=True):
    """One server. `name` identifies it in routes, metrics and logs; `ca_file` replaces the system's authorities."""

    name: str
    host: str
    port: int
    tls: TlsMode = TlsMode.STARTTLS
    helo_name: str = "localhost"
    username: str | None = None
    password: str | None = None
    verify: bool = True
    ca_file: str | None = None
    max_connections: int = 8
    timers: Timers = Timers()

    def __post_init__(self) -> None:
        """Refuse what could never work or would break a command."""
        if not _HELO_NAME.fullmatch(self.helo_name):
            raise ValueError("helo_name must be a host name or an address literal")
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together: both or neither")
        if _UNSENDABLE.search(f"{self.username}{self.password}"):
            raise ValueError("username and password must be UTF-8 text without NUL")
        if not 0 < self.port < 65536 or self.max_connections < 1:
            raise ValueError("port must be 1 to 65535 and max_connections at least 1")

    def __repr__(self) -> str:
        """Show where it is, never how we log in."""
        return f"NextHop({self.name!r}, {self.host!r}, {self.port}, {self.tls.value!r})"
