"""A TCP proxy before PostgreSQL that knows its protocol: it cuts at a statement, swallows what comes, is slow, or resets.

It runs in a thread with a loop of its own, so that both the tests that share a loop with Mailkeep and those of real processes can
use it. `dsn` leads through it. `cut` names a statement by a part of its text, and the moment:

- BEFORE: what executes it never reaches the server;
- UNDER_WAY: it reaches the server, and the connection is reset at once, whatever the server does then;
- COMMITTED: the server has answered, and nothing of the answer reaches the client;
- HALF: the first bytes of the answer do.

Every cut is a reset (RST) towards the client. Never used outside tests.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from urllib.parse import parse_qs, urlsplit

PATIENCE_S = 90.0
CHUNK_BYTES = 65536
READY = b"Z\x00\x00\x00\x05"
HALF_BYTES = 7
RESET = struct.pack("ii", 1, 0)


class Moment(Enum):
    """When the connection is cut."""

    BEFORE = auto()
    UNDER_WAY = auto()
    COMMITTED = auto()
    HALF = auto()


class PostgresProxy:
    """Stands before the server of `dsn`; `start` it, `stop` it."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        host = parse_qs(parts.query).get("host", [parts.hostname])[0]
        self._server = (host, parts.port or 5432)
        self._parts = parts
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._links: set[_Link] = set()
        self._cuts: list[tuple[str, Moment, int]] = []
        self.latency_s = 0.0
        self.cut_count = 0
        """How many connections were cut at a statement."""

    def start(self) -> "PostgresProxy":
        """Listen on a free port of loopback."""
        self._thread.start()
        self._run(self._listen())
        return self

    async def _listen(self) -> None:
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._listening.sockets[0].getsockname()[1]

    @property
    def dsn(self) -> str:
        """The DSN that leads through it."""
        user = self._parts.username or "mailkeep"
        return f"postgresql://{user}@127.0.0.1:{self.port}{self._parts.path}?sslmode=disable"

    def stop(self) -> None:
        """Cut what is open and end the thread."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._listening.close()
        await asyncio.sleep(0)  # what was let in just now begins, to be able to end
        for link in list(self._links):
            link.reset()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- faults --------------------------------------------------------------------------------------------------

    def cut(self, statement: str, moment: Moment, *, times: int = 1) -> None:
        """Cut the connections on which the next `times` executions of a statement come that contains this text."""
        self._cuts.append((statement, moment, times))

    def swallow(self) -> None:
        """Pass nothing more on over the connections there are, and end none of them; new ones are as ever."""
        self._run(self._swallow())

    async def _swallow(self) -> None:
        for link in self._links:
            link.is_mute = True

    def reset(self) -> None:
        """Reset every connection."""
        self._run(self._reset_all())

    def refuse(self) -> None:
        """Reset every connection and take no more."""
        self._run(self._refuse())

    async def _refuse(self) -> None:
        self._listening.close()
        await self._reset_all()

    async def _reset_all(self) -> None:
        for link in list(self._links):
            link.reset()

    def moment_of(self, text: str) -> Moment | None:
        """Return when to cut the connection that executes `text`, which counts as one of the times."""
        for index, (statement, moment, times) in enumerate(self._cuts):
            if statement in text:
                self._cuts[index : index + 1] = [(statement, moment, times - 1)] if times > 1 else []
                self.cut_count += 1
                return moment
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._server
        try:
            if host.startswith("/"):
                opened = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                opened = await asyncio.open_connection(host, port)
        except (OSError, asyncio.CancelledError):  # nobody there, or told to stop
            _reset(writer)
            return
        link = _Link(self, (reader, writer), opened)
        self._links.add(link)
        try:
            with suppress(asyncio.CancelledError):  # told to stop
                await link.run()
        finally:
            self._links.discard(link)

    def _run(self, coroutine) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)


class _Link:
    """One connection of a client with its own to the server."""

    def __init__(self, proxy: PostgresProxy, client, server) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._statements: dict[bytes, str] = {}
        self._moment: Moment | None = None
        self.is_mute = False

    async def run(self) -> None:
        pumps = [
            asyncio.create_task(pump)
            for pump in (self._pump_requests(), self._pump(self._from_server, self._answer))
        ]
        with suppress(OSError, asyncio.IncompleteReadError):
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        self._to_client.close()
        self._to_server.close()

    def reset(self) -> None:
        """Cut both sides."""
        _reset(self._to_client)
        _reset(self._to_server)

    async def _pump_requests(self) -> None:
        head = await self._from_client.readexactly(4)
        await self._pass(self._to_server, head + await self._from_client.readexactly(_length(head) - 4))
        await self._pump_frames()

    async def _pump_frames(self) -> None:
        while True:
            head = await self._from_client.readexactly(5)
            frame = head + await self._from_client.readexactly(_length(head[1:]) - 4)
            self._moment = self._moment or self._moment_of(frame)
            if self._moment is Moment.BEFORE:
                self.reset()
                return
            # Frames that are sent together travel together: they wait where the server is asked to answer.
            await self._pass(self._to_server, frame, late=frame[:1] in {b"S", b"Q"})
            if self._moment is Moment.UNDER_WAY and frame[:1] in {b"S", b"Q"}:
                self.reset()
                return

    def _moment_of(self, frame: bytes) -> Moment | None:
        kind, body = frame[:1], frame[5:]
        if kind == b"P":
            name, text, _ = body.split(b"\0", 2)
            self._statements[name] = text.decode()
        elif kind == b"B":
            _, name, _ = body.split(b"\0", 2)
            return self._proxy.moment_of(self._statements.get(name, ""))
        elif kind == b"Q":
            return self._proxy.moment_of(body.rstrip(b"\0").decode())
        return None

    async def _pump(self, reader: asyncio.StreamReader, take: Callable[[bytes], bytes | None]) -> None:
        while data := await reader.read(CHUNK_BYTES):
            kept = take(data)
            if kept:
                await self._pass(self._to_client, kept)
            if kept is None or (self._moment is Moment.HALF and kept != data):
                self.reset()
                return

    def _answer(self, data: bytes) -> bytes | None:
        """Return what of an answer is passed on; None: nothing, and the connection ends."""
        match self._moment:
            case Moment.COMMITTED:
                return None if data[-6:-1] == READY else b""
            case Moment.HALF:
                return data[:HALF_BYTES]
            case _:
                return data

    async def _pass(self, writer: asyncio.StreamWriter, data: bytes, *, late: bool = True) -> None:
        if late and self._proxy.latency_s:
            await asyncio.sleep(self._proxy.latency_s)
        if not self.is_mute:
            writer.write(data)
            await writer.drain()


def _length(head: bytes) -> int:
    return int.from_bytes(head, "big")


def _reset(writer: asyncio.StreamWriter) -> None:
    peer = writer.get_extra_info("socket")
    if peer is not None and peer.family != socket.AF_UNIX:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
