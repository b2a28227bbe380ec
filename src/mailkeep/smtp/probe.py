"""Looks whether a next hop can be used, without sending mail: for `mailkeep routes test`.

Each address is connected to by itself: once without the login, to see what the server is, and where there is a login once
more with it.
"""

from collections.abc import Iterator

import msgspec

from mailkeep.core.delivery import AttemptStatus
from mailkeep.core.outcome import Phase
from mailkeep.smtp.capabilities import Capabilities
from mailkeep.smtp.dial import Dialer
from mailkeep.smtp.ending import End
from mailkeep.smtp.next_hop import HopAddress, NextHop
from mailkeep.smtp.session import Session
from mailkeep.smtp.tls import fingerprint


class Certificate(msgspec.Struct, frozen=True):
    """A server's certificate. Names and expiry are known of a verified one only."""

    fingerprint: str
    names: tuple[str, ...]
    expires: str | None


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What was found at one address; `problem` is None if mail could be sent there.

    Else `phase`, `status` and `rule` are what an attempt would have been recorded with.
    """

    hop: str
    address: str
    problem: str | None = None
    phase: Phase | None = None
    status: AttemptStatus | None = None
    rule: str | None = None
    tls: str | None = None
    certificate: Certificate | None = None
    capabilities: tuple[str, ...] = ()
    logged_in: bool | None = None  # None: there is no login, or it was not reached


async def probe(hop: NextHop, address: HopAddress) -> Probe:
    """Connect to one address of `hop` and return what is there. Raises OSError if a file of certificates can't be used."""
    alone = msgspec.structs.replace(hop, addresses=(address,))
    stranger = msgspec.structs.replace(alone, username=None, password=None, token_command=(), auth=())
    session = await Dialer(stranger).open([])
    if isinstance(session, End):
        return _with_problem(Probe(hop=hop.name, address=str(address)), session)
    found = Probe(
        hop=hop.name,
        address=str(address),
        tls=_tls(session),
        certificate=_certificate(session),
        capabilities=tuple(_words(session.offered)),
    )
    await session.quit()
    if hop.username is None:
        return found
    session = await Dialer(alone).open([])
    if isinstance(session, End):
        return _with_problem(msgspec.structs.replace(found, logged_in=False), session)
    await session.quit()
    return msgspec.structs.replace(found, logged_in=True)


def _with_problem(found: Probe, end: End) -> Probe:
    reply = " ".join(filter(None, (str(end.code or ""), end.enhanced, end.text)))
    return msgspec.structs.replace(
        found, problem=f"{end.phase}: {reply}", phase=end.phase, status=end.status, rule=end.verdict.rule
    )


def _tls(session: Session) -> str | None:
    return None if session.tls is None else session.tls.version()


def _certificate(session: Session) -> Certificate | None:
    if session.tls is None:
        return None
    names = session.tls.getpeercert() or {}
    alternatives = names.get("subjectAltName", ())
    return Certificate(
        fingerprint(session.certificate),
        tuple(str(pair[1]) for pair in alternatives),
        str(names["notAfter"]) if names else None,
    )


def _words(offered: Capabilities) -> Iterator[str]:
    for keyword in ("starttls", "pipelining", "eightbitmime", "smtputf8", "enhancedstatuscodes"):
        if getattr(offered, keyword):
            yield "8BITMIME" if keyword == "eightbitmime" else keyword.upper()
    if offered.size:
        yield f"SIZE {offered.max_size_bytes}" if offered.max_size_bytes else "SIZE"
    if offered.auth:
        yield f"AUTH {' '.join(sorted(offered.auth))}"
