"""The sinkhole itself: a port, its sessions, and the refusals to run where it must not.

It never runs with `MAIL_ENVIRONMENT=production`, and listens beyond this host only when told to: whoever can reach it can fill
its memory bounds and reads nothing back. The CLI, `mailkeep dev`, the drill, tests and benchmarks start it.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
from functools import partial
from typing import Final

from mailkeep.listening import listen
from mailkeep.sinkhole.capture import Capture
from mailkeep.sinkhole.certificates import Certificates
from mailkeep.sinkhole.mode_source import FixedModeSource, ModeSource, Notice
from mailkeep.sinkhole.report import Observe
from mailkeep.sinkhole.session import TLS_HANDSHAKE_TIMEOUT_S, Credentials, Limits, Session, Shared
from mailkeep.sinkhole.transcripts import Transcripts

DEFAULT_LIMITS: Final = Limits()
BACKLOG: Final = 512  # connections the kernel holds while the loop is busy
ACCEPT_AGAIN_S: Final = 0.1
STOP_TIMEOUT_S: Final = 5.0  # cut connections are gone at once; this bounds a loop that is not well
_LOG: Final = logging.getLogger("mailkeep.sinkhole")


class SinkholeRefusedError(RuntimeError):
    """The sinkhole must not run here; the message says why and what to do."""


def refuse_in_production(environment: str) -> None:
    """Raise `SinkholeRefusedError` if `environment` (`MAIL_ENVIRONMENT`) is production."""
    if environment.strip().lower() == "production":
        raise SinkholeRefusedError(
            "the sinkhole does not start with MAIL_ENVIRONMENT=production: it would swallow real mail"
        )


def refuse_remote(host: str) -> None:
    """Raise `SinkholeRefusedError` unless `host` is `localhost` or a loopback address."""
    with contextlib.suppress(ValueError):
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return
    raise SinkholeRefusedError(
        f"{host} is not a loopback address; --allow-remote lets others reach the sinkhole"
    )


class Sinkhole:
    """An SMTP server that answers as its mode says and keeps what it takes in `capture`."""

    def __init__(
        self,
        source: ModeSource | None = None,
        capture: Capture | None = None,
        *,
        environment: str = "development",
        allow_remote: bool = False,
        limits: Limits = DEFAULT_LIMITS,
        tls: Certificates | None = None,
        implicit_tls: bool = False,
        credentials: Credentials | None = None,
        transcripts: Transcripts | None = None,
        observe: Observe | None = None,
        notice: Notice = _LOG.warning,
    ) -> None:
        self.source = source if source is not None else FixedModeSource()
        self.capture = capture if capture is not None else Capture()
        self._environment, self._allow_remote = environment, allow_remote
        self.transcripts = transcripts
        self._shared = Shared(
            self.source,
            self.capture,
            limits,
            tls=tls,
            implicit_tls=implicit_tls,
            credentials=credentials,
            transcripts=transcripts,
            observe=observe,
            notice=notice,
        )
        self._server: asyncio.Server | None = None
        self._listening: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._handshakes: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port it listens on. Raises RuntimeError before `start`."""
        if not self._listening:
            raise RuntimeError("the sinkhole has not started")
        return int(self._listening.getsockname()[1])

    @property
    def connection_count(self) -> int:
        """How many connections are open."""
        return len(self._shared.sessions)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen on `host` and `port` (0: a free one). Raises `SinkholeRefusedError`, or OSError if the port is taken."""
        refuse_in_production(self._environment)
        if not self._allow_remote:
            refuse_remote(host)
        await self.source.start()
        try:
            self._listening = listen(host, port, backlog=BACKLOG)
            self._listening.settimeout(0)
        except OSError:
            await self.source.stop()
            raise
        if self._shared.implicit_tls:
            self._accepting = asyncio.create_task(self._accept(self._listening), name="sinkhole")
        else:
            self._server = await asyncio.get_running_loop().create_server(
                partial(Session, self._shared), sock=self._listening, backlog=BACKLOG
            )

    async def _accept(self, listening: socket.socket) -> None:
        """Take connections whose first octets are a handshake's: each is decided on before anything of it is read."""
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(listening)
            except OSError:  # no file descriptors left, or a client that has gone: the next one may do better
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            if len(self._handshakes) >= self._shared.limits.connections:
                connection.close()
                continue
            handshake = asyncio.create_task(self._begin_in_tls(connection))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)

    async def _begin_in_tls(self, connection: socket.socket) -> None:
        session = Session(self._shared)
        delay_s, context = session.begin_in_tls()
        try:
            await asyncio.sleep(delay_s)
            with contextlib.suppress(OSError):  # a handshake that fails is the client's right
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: session,
                    connection,
                    ssl=context,
                    ssl_handshake_timeout=TLS_HANDSHAKE_TIMEOUT_S if context else None,
                )
        except asyncio.CancelledError:
            connection.close()
            raise

    async def stop(self) -> None:
        """Cut all connections, free the port, close the capture file; what was captured stays readable."""
        for accepting in (*filter(None, [self._accepting]), *self._handshakes):
            accepting.cancel()
        if self._server:
            self._server.close()
        for session in tuple(self._shared.sessions):
            session.abort()
        if self._server:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._server.wait_closed()
        if self._accepting:
            await asyncio.wait([self._accepting, *self._handshakes])
        if self._listening:
            self._listening.close()
        self._server = self._accepting = self._listening = None
        await self.source.stop()
        self.capture.close()
