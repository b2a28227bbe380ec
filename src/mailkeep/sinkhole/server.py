"""The sinkhole itself: a port, its sessions, and the refusals to run where it must not.

It never runs with `MAIL_ENVIRONMENT=production`, and listens beyond this host only when told to: whoever can reach it can fill
its memory bounds and reads nothing back. The CLI, `mailkeep dev`, the drill, tests and benchmarks start it.
"""

import asyncio
import contextlib
import ipaddress
import logging
import ssl
from functools import partial
from pathlib import Path
from typing import Final

from mailkeep.sinkhole.capture import Capture
from mailkeep.sinkhole.mode_source import FixedModeSource, ModeSource, Notice
from mailkeep.sinkhole.report import Observe
from mailkeep.sinkhole.session import Credentials, Limits, Session, Shared

DEFAULT_LIMITS: Final = Limits()
BACKLOG: Final = 512  # connections the kernel holds while the loop is busy
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


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a server's TLS context, TLS 1.2 or later (RFC 8996). Raises OSError if the files don't serve."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


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
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        credentials: Credentials | None = None,
        observe: Observe | None = None,
        notice: Notice = _LOG.warning,
    ) -> None:
        self.source = source if source is not None else FixedModeSource()
        self.capture = capture if capture is not None else Capture()
        self._environment, self._allow_remote = environment, allow_remote
        self._implicit_tls = tls if implicit_tls else None
        self._shared = Shared(
            self.source,
            self.capture,
            limits,
            starttls=None if implicit_tls else tls,
            credentials=credentials,
            observe=observe,
            notice=notice,
        )
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port it listens on. Raises RuntimeError before `start`."""
        if not self._server:
            raise RuntimeError("the sinkhole has not started")
        return int(self._server.sockets[0].getsockname()[1])

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
            self._server = await asyncio.get_running_loop().create_server(
                partial(Session, self._shared), host, port, ssl=self._implicit_tls, backlog=BACKLOG
            )
        except OSError:
            await self.source.stop()
            raise

    async def stop(self) -> None:
        """Cut all connections, free the port, close the capture file; what was captured stays readable."""
        if self._server:
            self._server.close()
            for session in tuple(self._shared.sessions):
                session.abort()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._server.wait_closed()
            self._server = None
        await self.source.stop()
        self.capture.close()
