"""The next hop of both peers: an SMTP server that accepts everything and notes when each message's final dot came.

A process of its own and not Mailkeep's sinkhole: it must be as cheap as can be, so that it doesn't take the CPU that
is being measured, and it must owe nothing to either peer. It parses no more of SMTP than it needs (RFC 5321 section
4.1, PIPELINING of RFC 2920); messages are counted and dropped. `Sink` is the handle on the process; the clock is
`time.monotonic_ns`, which all processes of a machine share.
"""

import asyncio
import multiprocessing
import signal
import time
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Final, Literal, Self, assert_never, cast

import msgspec
import uvloop

from bench.mail import TOKEN

REPLIES: Final = {
    b"EHLO": b"250-sink.bench.sinkhole.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n"
    b"250-ENHANCEDSTATUSCODES\r\n250 SIZE 26214400\r\n",
    b"MAIL": b"250 2.1.0 Ok\r\n",
    b"RSET": b"250 2.0.0 Ok\r\n",
    b"QUIT": b"221 2.0.0 Bye\r\n",
}
END_OF_DATA: Final = b"\r\n.\r\n"
BACKLOG: Final = 512  # above any number of connections a peer may open at once
MAX_LINE_BYTES: Final = 4096  # a peer that sends more without a line end is not speaking SMTP

Question = range | Literal["take"]
"""How many of these tokens came; or all that came, to be forgotten."""


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


class SinkProtocol(asyncio.Protocol):
    """One connection: a line reader that turns into a search for the final dot while content flows."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._buffer = bytearray()
        self._token: int | None = None
        self._in_data = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self._transport.write(b"220 sink.bench.sinkhole.test ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        """Answer all that is complete in one write."""
        self._buffer += data
        replies: list[bytes] = []
        while (reply := self._content() if self._in_data else self._command()) is not None:
            replies.append(reply)
        if replies:
            self._transport.write(b"".join(replies))

    def _content(self) -> bytes | None:
        end = self._buffer.find(END_OF_DATA)
        if end < 0:
            return None
        assert self._token is not None
        self._ledger.note(self._token, end + 2)
        del self._buffer[: end + len(END_OF_DATA)]
        self._in_data, self._token = False, None
        return b"250 2.0.0 Ok\r\n"

    def _command(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > MAX_LINE_BYTES:
                self._transport.abort()
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return self._reply(line)

    def _reply(self, line: bytes) -> bytes:
        verb = line[:4].upper()
        match verb:
            case b"RCPT":
                return self._rcpt(line)
            case b"DATA":
                self._in_data = self._token is not None
                return b"354 Go ahead\r\n" if self._in_data else b"503 5.5.1 RCPT first\r\n"
            case b"QUIT":
                asyncio.get_running_loop().call_soon(self._transport.close)  # after what is written now
        return REPLIES.get(verb, b"502 5.5.2 Unknown command\r\n")

    def _rcpt(self, line: bytes) -> bytes:
        found = TOKEN.search(line)
        if not found:
            return b"550 5.1.1 Not a bench address\r\n"
        self._token = int(found[1])
        return b"250 2.1.5 Ok\r\n"


class Sink:
    """The sink's process: `with Sink() as sink:` starts it; `port` is where it listens on 127.0.0.1."""

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self.port: int = self._pipe.recv()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()

    def count(self, tokens: range) -> int:
        """Return how many of `tokens` came since the last take."""
        self._pipe.send(tokens)
        count: int = self._pipe.recv()
        return count

    def take(self) -> Arrivals:
        """Return what came since the last take and forget it."""
        self._pipe.send("take")
        arrivals: Arrivals = self._pipe.recv()
        return arrivals


def _run(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bench's own affair; it ends us
    uvloop.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    ledger = Ledger()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SinkProtocol(ledger), "127.0.0.1", 0, backlog=BACKLOG)
    pipe.send(server.sockets[0].getsockname()[1])
    while True:
        question: Question = await asyncio.to_thread(pipe.recv)  # ends with the bench, by EOFError
        match question:
            case range():
                pipe.send(sum(map(ledger.arrivals.at_ns.__contains__, question)))
            case "take":
                pipe.send(ledger.take())
            case _:
                assert_never(question)
