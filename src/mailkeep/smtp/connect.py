"""From the name of a next hop to a connected session: its addresses in order, each with its own time.

Called by `converse`. TLS comes later and only over what this returns.
"""

import asyncio
import socket
import ssl
import time
from typing import Final

from mailkeep.core.outcome import Phase
from mailkeep.smtp.classify import FailureKind
from mailkeep.smtp.ending import Heard
from mailkeep.smtp.next_hop import NextHop
from mailkeep.smtp.session import Address, Session, SessionBrokenError, failure_of

MAX_ADDRESSES: Final = 8
"""Addresses of a host that are tried, one after the other."""


async def connect(hop: NextHop, tls: ssl.SSLContext | None, heard: list[Heard]) -> Session:
    """Connect to the first address of `hop` that answers. Raises `SessionBrokenError`, at `CONNECT`."""
    broken = SessionBrokenError(Phase.CONNECT, FailureKind.DNS)
    for family, address in await _resolve(hop):
        try:
            return await _connect(hop, family, address, tls, heard)
        except OSError as fault:
            broken = SessionBrokenError(Phase.CONNECT, *failure_of(fault))
            heard.append(_heard(address, broken.kind))
    raise broken


async def _resolve(hop: NextHop) -> list[tuple[int, Address]]:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(hop.timers.connect_s):
            found = await loop.getaddrinfo(hop.host, hop.port, type=socket.SOCK_STREAM)
    except TimeoutError as fault:
        raise SessionBrokenError(Phase.CONNECT, FailureKind.TIMEOUT, "resolving the host name") from fault
    except (OSError, UnicodeError) as fault:  # an impossible name fails before it is looked up
        raise SessionBrokenError(Phase.CONNECT, FailureKind.DNS) from fault
    return [(family, address) for family, _, _, _, address in found[:MAX_ADDRESSES]]


async def _connect(
    hop: NextHop, family: int, address: Address, tls: ssl.SSLContext | None, heard: list[Heard]
) -> Session:
    loop = asyncio.get_running_loop()
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(hop.timers.connect_s):
            await loop.sock_connect(connection, address)
        heard.append(_heard(address, "connected"))  # before the greeting can be
        _, session = await loop.create_connection(
            lambda: Session(hop, connection, address, tls, heard), sock=connection
        )
    except BaseException:
        connection.close()
        raise
    return session


def _heard(address: Address, result: str) -> Heard:
    return Heard(Phase.CONNECT, f"connect to {address[0]} port {address[1]}", result, time.monotonic())
