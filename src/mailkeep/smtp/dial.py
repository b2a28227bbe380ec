"""Opens sessions with one next hop, whichever of its addresses answers.

Where an address can't be used (it can't be connected to, greets with a refusal, fails at TLS, stalls before MAIL), the next one
is tried within the same attempt. A refused login is not tried elsewhere: it would be refused there, too, and some servers
lock an account for it. Called by `pool` and `probe`.
"""

import time
from typing import Final

from mailkeep.core.delivery import AttemptStatus
from mailkeep.core.outcome import Phase, Scope, Severity, Verdict
from mailkeep.smtp.converse import open_session
from mailkeep.smtp.ending import End, Heard, ended_by_failure
from mailkeep.smtp.failover import Failover
from mailkeep.smtp.login import Login
from mailkeep.smtp.lookup import Lookups
from mailkeep.smtp.next_hop import NextHop
from mailkeep.smtp.session import Place, Session, SessionBrokenError
from mailkeep.smtp.tls import tls_context
from mailkeep.smtp.token import NoTokenError, Tokens

MAX_TRIES: Final = 8
"""Places that one attempt connects to, so that an attempt ends; those that failed come last in the next one."""


class Dialer:
    """Opens sessions with `hop`. Raises OSError if a file of certificates can't be used."""

    __slots__ = ("_failover", "_hop", "_lookups", "_tls", "_tokens")

    def __init__(self, hop: NextHop) -> None:
        self._hop = hop
        self._tls = tls_context(hop)
        self._failover = Failover(hop.addresses)
        self._lookups = Lookups(hop.timers.connect_s, hop.source_address)
        self._tokens = Tokens(hop) if hop.token_command else None

    async def open(self, heard: list[Heard]) -> Session | End:
        """Return a session that is ready for mail, or why there is none."""
        if self._tokens is None:
            return await self._first(self._hop.password, heard)
        try:
            opened, again = await self._with_token(self._tokens, heard)
            if again:
                opened, _ = await self._with_token(self._tokens, heard)
        except NoTokenError as fault:
            return _no_token(fault)
        return opened

    async def _with_token(self, tokens: Tokens, heard: list[Heard]) -> tuple[Session | End, bool]:
        """Open a session with a token; also return whether it was refused and a fresh one may do."""
        token, fresh = await tokens.get()
        opened = await self._first(token, heard)
        refused = isinstance(opened, End) and _refuses_login(opened)
        if refused:
            tokens.forget(token)
        return opened, refused and not fresh

    async def _first(self, secret: str | None, heard: list[Heard]) -> Session | End:
        """Open a session at the first address that can be used."""
        end: End | None = None
        tries = MAX_TRIES
        for address in self._failover.order():
            try:
                places = await self._lookups.places(address)
            except SessionBrokenError as broken:
                heard.append(Heard(broken.phase, f"look up {address.host}", broken.kind, time.monotonic()))
                places, end = [], ended_by_failure(broken.phase, broken.kind, broken.detail)
            for place in places[:tries]:
                opened = await open_session(self._hop, place, self._tls, self._login(place, secret), heard)
                if isinstance(opened, Session):
                    self._failover.worked(address)
                    return opened
                if _refuses_login(opened):
                    return opened
                end = opened
            self._failover.failed(address)
            tries -= len(places[:tries])
            if not tries:
                break
        assert end is not None
        return end

    def _login(self, place: Place, secret: str | None) -> Login | None:
        if self._hop.username is None or secret is None:
            return None
        return Login(self._hop.username, secret, place.host, place.address[1])


def _refuses_login(end: End) -> bool:
    return end.phase is Phase.AUTH and end.code is not None and end.code // 100 == 5


def _no_token(fault: NoTokenError) -> End:
    # A credential's failure like a refused login: the breaker of the hop opens at once, and no rung is used.
    return End(
        Phase.AUTH,
        Verdict(Severity.TRANSIENT, Scope.CREDENTIAL, "no_token"),
        AttemptStatus.TRANSPORT_FAILED,
        clean=False,
        text=f"the token command {fault}",
    )
