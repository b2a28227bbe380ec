"""How connections to PostgreSQL are made: so that a peer that is gone is noticed, and a pooler is seen.

A machine that loses its power, or a network that drops a connection without a word, ends nothing by itself: the operating
system would wait for a quarter of an hour, and for ever where nobody sends. A pooler that shares its connections between
clients (PgBouncer in transaction mode) keeps no session: what is prepared, set or listened to on one is on another later.
"""

import socket
from typing import Final

import asyncpg

CONNECT_TIMEOUT_S: Final = 5.0
COMMAND_TIMEOUT_S: Final = 30.0
"""A statement that takes longer is given up as in doubt: a server that lives and stays silent must not hold anybody for ever."""
SILENT_S: Final = 10
"""A peer that acknowledges nothing for so long is gone. A server that is slow acknowledges all the same."""

_OPTIONS: Final = (
    ("TCP_KEEPIDLE", SILENT_S // 2),  # Linux
    ("TCP_KEEPALIVE", SILENT_S // 2),  # macOS, the same
    ("TCP_KEEPINTVL", SILENT_S // 4),
    ("TCP_KEEPCNT", 2),
    ("TCP_USER_TIMEOUT", SILENT_S * 1000),  # Linux: what was sent and not acknowledged; in milliseconds
)


async def connect(dsn: str) -> "asyncpg.Connection[asyncpg.Record]":
    """Connect outside the pool; nothing prepared is left behind. Raises the driver's errors."""
    connection = await asyncpg.connect(
        dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=COMMAND_TIMEOUT_S, statement_cache_size=0
    )
    await set_up(connection)
    return connection


async def set_up(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Make a new connection notice that its peer is gone, and leave the server's session as it is."""
    _notice_silence(connection)
    # Before the driver asks for the elements of an array it turns JIT off in the session, which behind a pooler is the next
    # client's as well; within a transaction that has it off already it would stay so. To the driver there is none now.
    connection._server_caps = connection._server_caps._replace(jit=False)  # type: ignore[attr-defined] # noqa: SLF001


def _notice_silence(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    # The operating system ends it. The driver has no way to say this, and none to reach its socket but this one.
    transport = connection._transport  # type: ignore[attr-defined] # noqa: SLF001
    peer: socket.socket = transport.get_extra_info("socket")
    if peer.family == socket.AF_UNIX:
        return
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS:
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def is_pooled(connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
    """Whether a pooler stands between: it names a process of its own invention, PostgreSQL the one that answers."""
    async with connection.transaction():  # so that what is asked is answered where it was prepared
        answering: int = await connection.fetchval("SELECT pg_backend_pid()")
    return answering != connection.get_server_pid()
