"""An HTTP listener: uvicorn inside our event loop, with the bounds that uvicorn leaves to a proxy.

A request that has not come whole in time is cut, a head or framing that grows without end is refused, connections are
counted, and a peer that takes its answer too slowly is dropped: all of it without a timer per request. With TLS a
handshake has its bound, and a client whose certificate has none of the wanted names is told so (403) and dropped. Signals
are not touched; whoever starts it stops it. Logs nothing: `wiring` says when it began and ended.
"""

import asyncio
import socket
from functools import partial
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mailkeep.intake.listener_tls import LOOK_EVERY_S, ListenerTls
from mailkeep.listening import Acceptor, listen

REQUEST_TIMEOUT_S: Final = 30.0
"""For one request to come whole, head and body; the largest body then needs about 1 MB/s."""
HANDSHAKE_TIMEOUT_S: Final = 10.0
"""For a TLS handshake: who has not shown yet that it may call gets less time than a request."""
KEEP_ALIVE_S: Final = 75
"""For a connection without a request: longer than the pools of usual clients and proxies keep it (60 s)."""
MAX_CONNECTIONS: Final = 1000
"""Further ones are closed at once: file descriptors must be left for PostgreSQL and the next hops."""
MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a head that needs several reads; one that comes in a single read is bounded by that (256 kB)."""
MAX_FRAMING_BYTES: Final = 1024 * 1024
"""Of what is not body behind the head: chunk sizes, extensions, trailers."""
MAX_HELD_BYTES: Final = 4096
"""Of what is held until more is written: any head of ours is far smaller."""
BACKLOG: Final = 2048

_HEAD_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)
_NAME_NOT_WANTED: Final = b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class _HeadHolder:
    """A connection on which the head of an answer waits for its body, to leave with it; the rest is the `transport`'s own.

    uvicorn writes one right after the other, and each would be a packet. What is written alone leaves when this turn of the
    event loop ends.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the transport has
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Hold `data` if nothing is held, else write both."""
        if not self._held and len(data) <= MAX_HELD_BYTES:
            self._held = data
            self._loop.call_soon(self._release)
        else:
            held, self._held = self._held, b""
            self._transport.write(held + data)

    def close(self) -> None:
        """Close, having written everything."""
        self._release()
        self._transport.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._held = b""
        self._transport.abort()

    def _release(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. `late_since` is when what it waits for began, None while nothing is owed to it."""

    def __init__(self, *, tls: ListenerTls | None = None, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own arguments, handed on
        super().__init__(**options)
        self._tls = tls
        self._may_call = True
        self._incomplete_since: float | None = None
        self._stalled_since: float | None = None
        self._head_is_open = True
        self._framing_bytes = 0

    def late_since(self) -> float | None:
        """Return when the request that is not whole yet, or the answer that is not taken, began (loop time)."""
        return self._incomplete_since if self._stalled_since is None else self._stalled_since

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request, unless there are too many connections."""
        super().connection_made(
            cast("asyncio.Transport", _HeadHolder(cast("asyncio.Transport", transport), self.loop))
        )
        self._incomplete_since = self.loop.time()
        if self._tls is not None:
            self._may_call = self._tls.may_call(transport.get_extra_info("peercert"))
        if len(self.connections) > MAX_CONNECTIONS:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse, then judge what is left open."""
        if not self._may_call:
            self.transport.write(_NAME_NOT_WANTED)
            self.transport.close()
            return
        super().data_received(data)
        if self._incomplete_since is not None:
            self._framing_bytes += len(data)
            if self._framing_bytes > (MAX_HEAD_BYTES if self._head_is_open else MAX_FRAMING_BYTES):
                self._refuse()

    def on_message_begin(self) -> None:
        """Note when a request begins."""
        super().on_message_begin()
        self._incomplete_since = self.loop.time()
        self._head_is_open = True
        self._framing_bytes = 0

    def on_headers_complete(self) -> None:
        """Note that what comes now is body."""
        self._head_is_open = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Tell body from framing."""
        self._framing_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is whole."""
        self._incomplete_since = None
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Note when the peer stopped to take its answer."""
        self._stalled_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that it takes it again."""
        self._stalled_since = None
        super().resume_writing()

    def _refuse(self) -> None:
        before: RequestResponseCycle | None = self.cycle
        if self._head_is_open and (before is None or before.response_complete):
            self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()
        else:
            self.transport.abort()


class HttpListener:
    """Serves `app` on `host`:`port` (0: a free port), or on the bound socket `listening`, which it then owns."""

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        listening: socket.socket | None = None,
        tls: ListenerTls | None = None,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self._host = host
        self._port = port
        self._listening = listening
        self._tls = tls
        self._request_timeout_s = request_timeout_s
        self._server = uvicorn.Server(
            uvicorn.Config(
                cast("Any", app),  # uvicorn and Starlette spell the same callable differently
                http=BoundedHttpProtocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                proxy_headers=False,
                server_header=False,
                date_header=False,
                access_log=False,
                log_config=None,
                log_level="warning",
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self._accepting: Acceptor | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Raises OSError when the address can't be used."""
        if self._listening is None:
            self._listening = listen(self._host, self._port, backlog=BACKLOG)
        server, config = self._server, self._server.config
        config.load()
        # Its main loop serves signals and the date header only; both are not wanted. Its own way to begin has no bound for
        # handshakes, and lets one process take every connection.
        server.lifespan = config.lifespan_class(config)
        protocol = partial(
            BoundedHttpProtocol,
            tls=self._tls,
            config=config,
            server_state=server.server_state,
            app_state=server.lifespan.state,
        )
        self._accepting = Acceptor(
            self._listening,
            protocol,
            tls=self._tls.context if self._tls else None,
            handshake_timeout_s=HANDSHAKE_TIMEOUT_S,
        )
        server.servers = []  # what its shutdown closes beside connections
        server.started = True
        self._watching = asyncio.create_task(self._watch(), name="http listener")

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._listening is not None
        port: int = self._listening.getsockname()[1]
        return port

    async def stop(self, timeout_s: float) -> None:
        """Take no more connections, let requests finish, and cut what takes longer than `timeout_s`."""
        watching, self._watching = self._watching, None
        if watching is None or self._listening is None or self._accepting is None:
            return
        watching.cancel()
        self._accepting.stop()
        try:
            async with asyncio.timeout(timeout_s):
                await self._server.shutdown(sockets=[self._listening])
        except TimeoutError:
            for connection in self._connections():
                connection.transport.abort()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        looked_at = loop.time()
        while True:
            await asyncio.sleep(self._request_timeout_s / 30)
            if self._tls is not None and loop.time() - looked_at > LOOK_EVERY_S:
                looked_at = loop.time()
                self._tls.renew()
            begun_by = loop.time() - self._request_timeout_s
            for connection in self._connections():
                late_since = connection.late_since()
                if late_since is not None and late_since < begun_by:
                    connection.transport.abort()

    def _connections(self) -> list[BoundedHttpProtocol]:
        return cast("list[BoundedHttpProtocol]", list(self._server.server_state.connections))
