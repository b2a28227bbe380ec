"""A next hop that passes each phase of a dialog through a `Gate`: what it hears is answered when the gate lets it.

One command at a time (no PIPELINING), so that each phase is a point of its own. It keeps what it took as `ledger.Copy`,
notes bare line ends, and speaks STARTTLS and AUTH PLAIN where a certificate is given. Each door is a port with a gate of
its own; the copies of all doors are one list.
"""

import asyncio
import hashlib
import re
import ssl
from contextlib import suppress
from typing import Final

from fault_gate import CutError, Gate, Step
from fault_proxies import reset

from mailkeep.drill.ledger import Copy

BLOCK_BYTES: Final = 64 * 1024
ALL: Final = 1 << 30
_MESSAGE_ID: Final = re.compile(rb"^Message-ID: *(<[^>]*>)", re.IGNORECASE | re.MULTILINE)
_END: Final = b"\r\n.\r\n"
_STUFFED: Final = re.compile(rb"^\.", re.MULTILINE)
_BARE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)")


class HoldingHop:
    """The server behind the doors of one cell."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.copies: list[Copy] = []
        self.dot_count = 0
        """How many final dots arrived."""
        self.deferrals = 0
        """How many more RCPTs are answered 451."""
        self.rcpt_delay_s = 0.0
        self._servers: list[asyncio.Server] = []
        self._running: set[asyncio.Task[None]] = set()

    async def door(self, gate: Gate) -> int:
        """Listen on one more port, behind `gate`; returns it."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            running = asyncio.current_task()
            assert running is not None
            self._running.add(running)
            with suppress(CutError, OSError, EOFError, ssl.SSLError, asyncio.CancelledError, TimeoutError):
                await _Dialog(self, gate, reader, writer).run()
            reset(writer)
            self._running.discard(running)

        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=BLOCK_BYTES)
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Cut everything."""
        for server in self._servers:
            server.close()
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


class _Dialog:
    """One connection."""

    def __init__(
        self, hop: HoldingHop, gate: Gate, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._hop, self._gate, self._reader, self._writer = hop, gate, reader, writer
        self._encrypted = False
        self._recipients: list[str] = []

    async def run(self) -> None:
        """Speak until QUIT, the end, or a cut."""
        await self._heard("connection")
        self._say("220 hop.example.org ESMTP")
        while line := await self._reader.readline():
            verb, _, rest = line.decode("utf-8", "replace").strip().partition(" ")
            if await self._answer(verb.upper(), rest):
                return

    async def _answer(self, verb: str, rest: str) -> bool:
        match verb:
            case "EHLO":
                await self._heard("EHLO in TLS" if self._encrypted else "EHLO")
                self._offer()
            case "STARTTLS":
                await self._start_tls()
            case "AUTH":
                await self._heard("AUTH")
                self._say("235 2.7.0 Ok")
            case "MAIL" | "RSET":
                await self._heard(verb)
                self._recipients = []
                self._say("250 2.0.0 Ok")
            case "RCPT":
                await self._rcpt(rest)
            case "DATA":
                await self._data()
            case "QUIT":
                await self._heard("QUIT")
                self._say("221 2.0.0 Bye")
                await self._writer.drain()
                return True
            case _:
                self._say("502 5.5.1 Not here")
        return False

    def _offer(self) -> None:
        if self._hop.tls is not None and not self._encrypted:
            self._say("250-hop.example.org\r\n250 STARTTLS")
        elif self._encrypted:
            self._say("250-hop.example.org\r\n250-8BITMIME\r\n250 AUTH PLAIN")
        else:
            self._say("250-hop.example.org\r\n250 8BITMIME")

    async def _start_tls(self) -> None:
        await self._heard("STARTTLS")
        assert self._hop.tls is not None
        # What follows the answer belongs to the handshake: nothing of it may be read as a line.
        self._writer.transport.pause_reading()
        self._say("220 2.0.0 Go ahead")
        await self._heard("TLS handshake")
        await self._writer.start_tls(self._hop.tls)
        self._encrypted = True

    async def _rcpt(self, rest: str) -> None:
        await self._heard("RCPT")
        await asyncio.sleep(self._hop.rcpt_delay_s)
        if self._hop.deferrals > 0:
            self._hop.deferrals -= 1
            self._say("451 4.3.0 Later")
            return
        self._recipients.append(rest.partition("<")[2].partition(">")[0])
        self._say("250 2.1.5 Ok")

    async def _data(self) -> None:
        await self._heard("DATA")
        self._say("354 Go ahead")
        message = await self._reader.readline()
        number = self._gate.enter("smtp", "message")
        await self._step("message", number, Step.BEFORE)
        while not message.endswith(_END):
            block = await self._reader.read(BLOCK_BYTES)
            if not block:
                raise EOFError
            message += block
        self._hop.dot_count += 1
        number = self._gate.enter("smtp", "final dot")
        await self._step("final dot", number, Step.BEFORE)
        self._store(_STUFFED.sub(b"", message.removesuffix(b".\r\n")))
        await self._step("final dot", number, Step.INSIDE)
        self._say("250 2.0.0 Taken")
        await self._writer.drain()
        await self._step("final dot", number, Step.AFTER)

    def _store(self, message: bytes) -> None:
        found = _MESSAGE_ID.search(message.partition(b"\r\n\r\n")[0])
        self._hop.copies.append(
            Copy(
                found[1].decode() if found else "",
                tuple(self._recipients),
                hashlib.sha256(message).hexdigest(),
                ("bare_line_end",) if _BARE.search(message) else (),
            )
        )

    def _say(self, reply: str) -> None:
        self._writer.write(f"{reply}\r\n".encode())

    async def _heard(self, what: str) -> None:
        await self._step(what, self._gate.enter("smtp", what), Step.BEFORE)

    async def _step(self, what: str, number: int, step: Step) -> None:
        if not await self._gate.reach("smtp", what, number, step):
            raise CutError
