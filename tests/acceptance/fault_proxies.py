"""Proxies before PostgreSQL and Redis that know where in a conversation they are, and pass each step through a `Gate`.

PostgreSQL (protocol 3.0): statements have the name of their file in `store/sql`, others their first words. A statement can be
held before anything of it reached the server, executed but not committed (its Sync is kept back), and committed with the
answer kept back. Redis: each command, before and after. One proxy serves one replica.
"""

import asyncio
import re
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import hiredis
from fault_gate import CutError, Gate, Step

from mailkeep.store.queries import names, query

READ_BYTES: Final = 256 * 1024
NAME_CHARS: Final = 48
LEFT_LOOK_S: Final = 0.2
_SSL, _GSS, _CANCEL = 80877103, 80877104, 80877102
_OF_FIRST_LINE: Final = {query(name).splitlines()[0]: name for name in names()}


def statement_name(text: str) -> str:
    """Return the name of a statement: its file's, else its first words."""
    lines = text.strip().splitlines() or ["nothing"]
    named = _OF_FIRST_LINE.get(lines[0])
    if named:
        return named
    words = " ".join(line for line in lines if not line.lstrip().startswith("--"))
    return re.split(r"[($;]", " ".join(words.split()))[0].strip()[:NAME_CHARS].strip()


def reset(writer: asyncio.StreamWriter) -> None:
    """Drop a connection as a machine does that is gone: with RST, and nothing more is read or written."""
    connection = writer.get_extra_info("socket")
    with suppress(OSError, AttributeError):  # none is left where TLS has closed it
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Proxy:
    """Listens on a port of 127.0.0.1 and makes a conversation of each connection."""

    def __init__(self, gate: Gate, upstream: Path, kind: "Callable[..., _Conversation]") -> None:
        self._gate, self._upstream, self._kind = gate, upstream, kind
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut everything."""
        assert self._server is not None
        self._server.close()
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running = asyncio.current_task()
        assert running is not None
        self._running.add(running)
        up_writer = None
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(self._upstream)
            await self._kind(self._gate, reader, writer, up_reader, up_writer).run()
        except (CutError, OSError, EOFError, asyncio.CancelledError, TimeoutError):
            pass
        finally:
            reset(writer)
            if up_writer is not None:
                up_writer.transport.abort()
            self._running.discard(running)


class _Conversation:
    """One connection through a proxy."""

    place = ""

    def __init__(
        self,
        gate: Gate,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        self._gate = gate
        self._reader, self._writer, self._up_reader, self._up_writer = reader, writer, up_reader, up_writer

    async def run(self) -> None:
        """Carry bytes both ways until one side ends or the connection is cut."""
        pumps = [asyncio.create_task(self._asking()), asyncio.create_task(self._answering())]
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in done:
                pump.result()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _asking(self) -> None:
        raise NotImplementedError

    async def _answering(self) -> None:
        raise NotImplementedError

    async def _pass(self, name: str, number: int, step: Step) -> None:
        if not await self._gate.reach(self.place, name, number, step):
            raise CutError


# -- PostgreSQL ----------------------------------------------------------------------------------------------------

_SYNC, _FLUSH = b"S\x00\x00\x00\x04", b"H\x00\x00\x00\x04"
_ENDS_ASKING: Final = b"SHQX"  # Sync, Flush, Query, Terminate
_EXECUTED: Final = b"CEIs"  # CommandComplete, ErrorResponse, EmptyQueryResponse, PortalSuspended


class PostgresConversation(_Conversation):
    """A session of protocol 3.0; one statement at a time, as asyncpg speaks."""

    place = "postgres"

    def __init__(self, *ends: Any) -> None:
        super().__init__(*ends)
        self._current: tuple[str, int] | None = None
        self._texts: dict[bytes, str] = {}
        self._announced: dict[
            str, int
        ] = {}  # parsed and not run yet: the driver may look up types in between
        self._kept_back = asyncio.Event()  # executed, its Sync is kept back

    async def _asking(self) -> None:
        if not await self._greet():
            return
        exchange: list[bytes] = []
        while True:
            head = await self._reader.readexactly(5)
            (size,) = struct.unpack("!I", head[1:])
            exchange.append(head + await self._reader.readexactly(size - 4))
            if head[:1] in _ENDS_ASKING:
                await self._ask(exchange)
                exchange = []

    async def _greet(self) -> bool:
        """Pass the start of the session; False: there is none, it was a request to cancel another's statement."""
        while True:
            head = await self._reader.readexactly(8)
            size, code = struct.unpack("!II", head)
            rest = await self._reader.readexactly(size - 8)
            if code in (_SSL, _GSS):
                self._writer.write(b"N")
                continue
            if code != _CANCEL:
                number = self._gate.enter(self.place, "connect")
                await self._pass("connect", number, Step.BEFORE)
            self._up_writer.write(head + rest)
            await self._up_writer.drain()
            return code != _CANCEL

    async def _ask(self, exchange: list[bytes]) -> None:
        name = self._name(exchange)
        if name is None:
            self._up_writer.write(b"".join(exchange))
            return
        is_run = any(message[:1] in b"EQ" for message in exchange)
        number = self._announced.pop(name, 0)
        if not number:
            number = self._gate.enter(self.place, name)
            await self._pass(name, number, Step.BEFORE)
        if not is_run:
            self._announced[name] = number
        if is_run:
            await self._run(name, number, exchange)
        else:
            self._up_writer.write(b"".join(exchange))

    async def _run(self, name: str, number: int, exchange: list[bytes]) -> None:
        self._current = (name, number)
        if exchange[-1] != _SYNC:
            self._up_writer.write(b"".join(exchange))
            return
        if not self._gate.wants(self.place, name, number, Step.INSIDE):
            await self._pass(name, number, Step.INSIDE)
            self._up_writer.write(b"".join(exchange))
            return
        self._kept_back.clear()
        self._up_writer.write(b"".join(exchange[:-1]) + _FLUSH)
        await self._kept_back.wait()
        await self._pass_unless_left(name, number)
        self._up_writer.write(_SYNC)

    async def _pass_unless_left(self, name: str, number: int) -> None:
        """Pass the point inside; a replica that gives up meanwhile takes the session with it, with all its locks."""
        passing = asyncio.ensure_future(self._pass(name, number, Step.INSIDE))
        try:
            while not passing.done():
                await asyncio.wait({passing}, timeout=LEFT_LOOK_S)
                if self._reader._eof:  # at_eof() would wait until all is read
                    raise CutError
            passing.result()
        finally:
            passing.cancel()

    def _name(self, exchange: list[bytes]) -> str | None:
        for message in exchange:
            match message[:1]:
                case b"Q":
                    return statement_name(message[5:-1].decode())
                case b"P":
                    key, text, _ = message[5:].split(b"\0", 2)
                    self._texts[key] = statement_name(text.decode())
                    return self._texts[key]
                case b"B":
                    _portal, key, _ = message[5:].split(b"\0", 2)
                    return self._texts[key]
        return None

    async def _answering(self) -> None:
        held = b""
        while True:
            head = await self._up_reader.readexactly(5)
            (size,) = struct.unpack("!I", head[1:])
            message = head + await self._up_reader.readexactly(size - 4)
            if self._current is None:
                self._writer.write(message)
                await self._writer.drain()
                continue
            held += message
            if head[:1] in _EXECUTED:
                self._kept_back.set()
            if head[:1] == b"Z":
                (name, number), self._current = self._current, None
                await self._pass(name, number, Step.AFTER)
                self._writer.write(held)
                await self._writer.drain()
                held = b""


# -- Redis ---------------------------------------------------------------------------------------------------------

_WITH_VERB: Final = {"XGROUP", "XINFO", "CLIENT"}


class RedisConversation(_Conversation):
    """A session of RESP; each reply is the answer to the oldest command without one, as clients write several at once."""

    place = "redis"

    def __init__(self, *ends: Any) -> None:
        super().__init__(*ends)
        self._unanswered: deque[tuple[str, int]] = deque()

    async def _asking(self) -> None:
        while True:
            words, raw = await self._command()
            verb = words[0].decode().upper()
            name = f"{verb} {words[1].decode().upper()}" if verb in _WITH_VERB else verb
            number = self._gate.enter(self.place, name)
            await self._pass(name, number, Step.BEFORE)
            self._unanswered.append((name, number))
            self._up_writer.write(raw)

    async def _command(self) -> tuple[list[bytes], bytes]:
        raw = await self._reader.readline()
        if not raw:
            raise EOFError
        words = []
        for _ in range(int(raw[1:])):
            head = await self._reader.readline()
            word = await self._reader.readexactly(int(head[1:]) + 2)
            words.append(word[:-2])
            raw += head + word
        return words, raw

    async def _answering(self) -> None:
        replies = hiredis.Reader(replyError=str)
        while data := await self._up_reader.read(READ_BYTES):
            replies.feed(data)
            while replies.gets() is not False:
                await self._pass(*self._unanswered.popleft(), Step.AFTER)
            self._writer.write(data)
            await self._writer.drain()
