"""From a place of a next hop to a connected session.

Called by `converse`. TLS comes later and only over what this returns.
"""

import asyncio
import socket
import ssl
import time

from mailkeep.core.outcome import Phase
from mailkeep.smtp.classify import FailureKind
from mailkeep.smtp.ending import Heard
from mailkeep.smtp.next_hop import NextHop
from mailkeep.smtp.session import Place, Session, SessionBrokenError, failure_of


async def connect(hop: NextHop, place: Place, tls: ssl.SSLContext | None, heard: list[Heard]) -> Session:
    """Connect to `place`, a server of `hop`. Raises `SessionBrokenError`, at `CONNECT`."""
    try:
        return await _connect(hop, place, tls, heard)
    except OSError as fault:
        kind, detail = failure_of(fault)
        heard.append(_heard(place, kind))
        if kind is FailureKind.TIMEOUT:
            detail = "connecting"
        raise SessionBrokenError(Phase.CONNECT, kind, detail) from fault


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


def _heard(place: Place, result: str) -> Heard:
    host, port = place.address[:2]
    return Heard(Phase.CONNECT, f"connect to {host} port {port}", result, time.monotonic())
