"""From an address of a next hop to a connected session: its host looked up, then one place of it connected to.

Called by `dial`. TLS comes later and only over what this returns.
"""

import asyncio
import ipaddress
import socket
import ssl
import time
from typing import Final

from mailkeep.core.outcome import Phase
from mailkeep.smtp.classify import FailureKind
from mailkeep.smtp.ending import Heard
from mailkeep.smtp.next_hop import HopAddress, NextHop
from mailkeep.smtp.session import Place, Session, SessionBrokenError, failure_of

MAX_PLACES: Final = 8
"""IP addresses of one host that are looked at."""


async def resolve(hop: NextHop, address: HopAddress) -> list[Place]:
    """Look up `address`, in the family of the hop's `source_address`. Raises `SessionBrokenError`, at `CONNECT`."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(hop.timers.connect_s):
            found = await loop.getaddrinfo(
                address.host, address.port, family=_family(hop.source_address), type=socket.SOCK_STREAM
            )
    except TimeoutError as fault:
        raise SessionBrokenError(Phase.CONNECT, FailureKind.TIMEOUT, "resolving the host name") from fault
    except (OSError, UnicodeError) as fault:  # an impossible name fails before it is looked up
        raise SessionBrokenError(Phase.CONNECT, FailureKind.DNS) from fault
    return [Place(address.host, family, place) for family, _, _, _, place in found[:MAX_PLACES]]


async def connect(hop: NextHop, place: Place, tls: ssl.SSLContext | None, heard: list[Heard]) -> Session:
    """Connect to `place`, a server of `hop`. Raises `SessionBrokenError`, at `CONNECT`."""
    try:
        return await _connect(hop, place, tls, heard)
    except OSError as fault:
        broken = SessionBrokenError(Phase.CONNECT, *failure_of(fault))
        heard.append(_heard(place, broken.kind))
        raise broken from fault


async def _connect(hop: NextHop, place: Place, tls: ssl.SSLContext | None, heard: list[Heard]) -> Session:
    loop = asyncio.get_running_loop()
    connection = socket.socket(place.family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hop.source_address is not None:
            connection.bind((hop.source_address, 0))
        async with asyncio.timeout(hop.timers.connect_s):
            await loop.sock_connect(connection, place.address)
        heard.append(_heard(place, "connected"))  # before the greeting can be
        _, session = await loop.create_connection(
            lambda: Session(hop, place, connection, tls, heard), sock=connection
        )
    except BaseException:
        connection.close()
        raise
    return session


def _family(source_address: str | None) -> int:
    if source_address is None:
        return socket.AF_UNSPEC
    return socket.AF_INET if ipaddress.ip_address(source_address).version == 4 else socket.AF_INET6


def _heard(place: Place, result: str) -> Heard:
    host, port = place.address[:2]
    return Heard(Phase.CONNECT, f"connect to {host} port {port}", result, time.monotonic())
