"""The next hop of both peers: an SMTP server that accepts everything and notes when each message's final dot came.

A process of its own and not Mailkeep's sinkhole: it must be as cheap as can be, so that it doesn't take the CPU that
is being measured, and it must owe nothing to either peer. It parses no more of SMTP than it needs (RFC 5321 section
4.1, PIPELINING of RFC 2920, STARTTLS of RFC 3207); messages are counted and dropped. `Sink` is the handle on the process;
the clock is `time.monotonic_ns`, which all processes of a machine share.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, Literal, assert_never, cast

import msgspec
import trustme
import uvloop

from bench.child import Child
from bench.mail import TOKEN

OK: Final = b"250 2.0.0 Ok\r\n"
READY_FOR_TLS: Final = b"220 2.0.0 Ready\r\n"
REPLIES: Final = {
    b"MAIL": b"250 2.1.0 Ok\r\n",
    b"RSET": OK,
    b"QUIT": b"221 2.0.0 Bye\r\n",
}
EHLO: Final = (
    b"250-sink.bench.example.org\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n"
    b"%b250-ENHANCEDSTATUSCODES\r\n250 SIZE 26214400\r\n"
)
END_OF_DATA: Final = b"\r\n.\r\n"
BACKLOG: Final = 512  # above any number of connections a peer may open at once
MAX_LINE_BYTES: Final = 4096  # a peer that sends more without a line end is not speaking SMTP

Question = range | Literal["take", "open"]
"""How many of these tokens came; all that came, to be forgotten; or to greet who waits, and all who come from now on."""


class Behaviour(msgspec.Struct, frozen=True):
    """How a sink behaves. `delay_s`: each reply leaves so much after its command came. A `stalled` one never answers a dot.

    One that is `shut` greets nobody until it is opened.
    """

    tls: bool = False
    delay_s: float = 0.0
    stalled: bool = False
    shut: bool = False


class Arrivals(msgspec.Struct):
    """What came since the last take. `at_ns` is the first arrival of each token; `content_bytes` is without the dot."""

    at_ns: dict[int, int] = msgspec.field(default_factory=dict)
    duplicates: int = 0
    content_bytes: int = 0


class Ledger:
    """Where the connections write; they outlive a take."""

    def __init__(self) -> None:
        self.arrivals = Arrivals()

    def note(self, token: int, size_bytes: int) -> None:
        """Record one message, at now."""
        self.arrivals.content_bytes += size_bytes
        if token in self.arrivals.at_ns:
            self.arrivals.duplicates += 1
        else:
            self.arrivals.at_ns[token] = time.monotonic_ns()

    def take(self) -> Arrivals:
        """Return what came so far and begin anew."""
        taken, self.arrivals = self.arrivals, Arrivals()
        return taken


class Door:
    """Where connections wait to be greeted while it is shut."""

    def __init__(self, *, shut: bool) -> None:
        self._waiting: list[Callable[[], None]] | None = [] if shut else None

    def enter(self, greet: Callable[[], None]) -> None:
        """Call `greet` now, or once it opens."""
        if self._waiting is None:
            greet()
        else:
            self._waiting.append(greet)

    def open(self) -> None:
        """Let in who waits, and all who come from now on."""
        waiting, self._waiting = self._waiting or [], None
        for greet in waiting:
            greet()


class SinkProtocol(asyncio.Protocol):
    """One connection: a line reader that turns into a search for the final dot while content flows.

    Nothing of a content is kept but the end of a piece that could be the beginning of its dot.
    """

    def __init__(self, ledger: Ledger, behaviour: Behaviour, tls: ssl.SSLContext | None, door: Door) -> None:
        self._ledger, self._behaviour, self._tls, self._door = ledger, behaviour, tls, door
        self._rest = b""
        self._token: int | None = None
        self._in_data = False
        self._size_bytes = 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self._door.enter(lambda: self._write(b"220 sink.bench.example.org ESMTP\r\n"))

    def data_received(self, data: bytes) -> None:
        """Answer all that is complete in one write."""
        if self._rest:
            data = self._rest + data
        begin, replies = 0, b""
        while True:
            mark = END_OF_DATA if self._in_data else b"\r\n"
            end = data.find(mark, begin)
            if end < 0:
                break
            replies += self._end_content(end - begin) if self._in_data else self._reply(data[begin:end])
            begin = end + len(mark)
        self._keep(data, begin)
        if replies:
            self._write(replies)
        if replies == READY_FOR_TLS:
            self._transport.pause_reading()  # what follows is the handshake
            self._starting = asyncio.get_running_loop().create_task(self._start_tls())

    def _keep(self, data: bytes, begin: int) -> None:
        if self._in_data:
            kept_from = max(begin, len(data) - len(END_OF_DATA) + 1)
            self._size_bytes += kept_from - begin
            begin = kept_from
        self._rest = data[begin:]
        if len(self._rest) > MAX_LINE_BYTES:
            self._transport.abort()

    def _write(self, replies: bytes) -> None:
        if self._behaviour.delay_s:
            asyncio.get_running_loop().call_later(self._behaviour.delay_s, self._write_now, replies)
        else:
            self._transport.write(replies)

    def _write_now(self, replies: bytes) -> None:
        if not self._transport.is_closing():  # who said QUIT, or left, need not wait
            self._transport.write(replies)

    async def _start_tls(self) -> None:
        assert self._tls is not None
        try:
            secured = await asyncio.get_running_loop().start_tls(
                self._transport, self, self._tls, server_side=True
            )
        except OSError:
            return  # who hangs up in the handshake comes again, or the mail is missing
        assert secured is not None
        self._transport, self._tls = secured, None

    def _end_content(self, size_bytes: int) -> bytes:
        assert self._token is not None
        self._ledger.note(self._token, self._size_bytes + size_bytes + 2)
        self._in_data, self._token, self._size_bytes = False, None, 0
        return b"" if self._behaviour.stalled else OK

    def _reply(self, line: bytes) -> bytes:
        verb = line[:4].upper()
        match verb:
            case b"RCPT":
                return self._rcpt(line)
            case b"DATA":
                self._in_data = self._token is not None
                return b"354 Go ahead\r\n" if self._in_data else b"503 5.5.1 RCPT first\r\n"
            case b"EHLO":
                return EHLO % (b"250-STARTTLS\r\n" if self._tls else b"")
            case b"STAR" if self._tls:
                return READY_FOR_TLS
            case b"QUIT":
                asyncio.get_running_loop().call_soon(self._transport.close)  # after what is written now
        return REPLIES.get(verb, b"502 5.5.2 Unknown command\r\n")

    def _rcpt(self, line: bytes) -> bytes:
        found = TOKEN.search(line)
        if not found:
            return b"550 5.1.1 Not a bench address\r\n"
        self._token = int(found[1])
        return b"250 2.1.5 Ok\r\n"


class Sink(Child):
    """The sink's process: `with Sink(folder) as sink:` starts it; `port` is where it listens on 127.0.0.1.

    With TLS the certificate of its authority lies at `ca_file`.
    """

    def __init__(self, folder: Path, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.ca_file = folder / "sink-ca.pem"
        chain_file = folder / "sink.pem"
        if self.behaviour.tls:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(str(self.ca_file))
            authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(chain_file))
            self.ca_file.chmod(0o644)  # Postfix is not root
        super().__init__(_run, self.behaviour, chain_file)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self.ready
        return port

    def count(self, tokens: range) -> int:
        """Return how many of `tokens` came since the last take."""
        count: int = self.ask(tokens)
        return count

    def take(self) -> Arrivals:
        """Return what came since the last take and forget it."""
        arrivals: Arrivals = self.ask("take")
        return arrivals

    def open(self) -> None:
        """Let in who waits at the door, and all who come from now on."""
        self.ask("open")


def _run(pipe: Connection, behaviour: Behaviour, chain_file: Path) -> None:
    uvloop.run(_serve(pipe, behaviour, chain_file))


async def _serve(pipe: Connection, behaviour: Behaviour, chain_file: Path) -> None:
    ledger, door = Ledger(), Door(shut=behaviour.shut)
    loop = asyncio.get_running_loop()
    tls = None
    if behaviour.tls:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(chain_file)
    server = await loop.create_server(
        lambda: SinkProtocol(ledger, behaviour, tls, door), "127.0.0.1", 0, backlog=BACKLOG
    )
    pipe.send(server.sockets[0].getsockname()[1])
    while True:
        question: Question = await asyncio.to_thread(pipe.recv)  # ends with the bench, by EOFError
        match question:
            case range():
                pipe.send(sum(map(ledger.arrivals.at_ns.__contains__, question)))
            case "take":
                pipe.send(ledger.take())
            case "open":
                door.open()
                pipe.send(None)
            case _:
                assert_never(question)
