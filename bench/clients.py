"""What the load client speaks: HTTP, SMTP and Redis on raw asyncio protocols, SQL by asyncpg.

Each as cheap as it can be, because the load runs on the machine that is being measured. A connection is used again for
each hand-over and never has two in flight. Any answer but acceptance raises: a benchmark of refusals says nothing.
"""

import abc
import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Protocol, cast

import asyncpg

from bench.errors import BenchError
from bench.mail import STREAM, Exchange, Message
from bench.peer import Intake

HTTP_ACCEPTED: Final = (b"HTTP/1.1 200 ", b"HTTP/1.1 202 ")
MAX_ANSWER_CHARS: Final = 400  # of a refusal, in the error


class Client(Protocol):
    """One connection to a peer."""

    async def hand_over(self, group: Sequence[Message]) -> None:
        """Give messages to the peer, all at once. Raises `BenchError` unless every answer is acceptance."""

    def close(self) -> None:
        """Hang up."""


async def connect(intake: Intake, way: str) -> Client:
    """Return a connection to the intake at `way` (see `Peer.ways`)."""
    loop = asyncio.get_running_loop()
    match intake:
        case Intake.SQL:
            return SqlClient(await asyncpg.connect(way))
        case Intake.STREAM:
            return (await loop.create_unix_connection(RedisClient, way))[1]
        case Intake.SMTP | Intake.SMTP_FINISHED:
            _, client = await loop.create_connection(SmtpClient, "127.0.0.1", int(way))
            await client.open()
            return client
        case _:
            return (await loop.create_connection(HttpClient, "127.0.0.1", int(way)))[1]


class SqlClient:
    """A transaction of `mail.enqueue` calls."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection

    async def hand_over(self, group: Sequence[Message]) -> None:
        """Commit the whole group in one transaction."""
        commands = [(exchange.data.decode(),) for (exchange,) in group]
        try:
            await self._connection.executemany("SELECT mail.enqueue($1::jsonb)", commands)
        except asyncpg.PostgresError as fault:
            raise BenchError(f"the peer refused a message: {fault}") from fault

    def close(self) -> None:
        """Hang up."""
        self._connection.terminate()


class LineClient(asyncio.Protocol, abc.ABC):
    """What differs between protocols is how an answer is cut off the buffer and judged."""

    greeting: ClassVar = 0  # answers that come unasked

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._awaited = self.greeting
        self._answered: asyncio.Future[None]
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be ready for a greeting."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self._answered = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """Judge each whole answer; at the last that is awaited wake `hand_over`."""
        self._buffer += data
        while (answer := self._next_answer()) is not None:
            self._awaited -= 1
            if not self._accepts(answer):
                text = answer[:MAX_ANSWER_CHARS].decode(errors="replace")
                self._fail(BenchError(f"the peer refused a message: {text}"))
        if self._awaited == 0 and not self._answered.done():
            self._answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail who waits: a peer has no reason to hang up on a client that sends."""
        self._fail(BenchError(f"the peer closed the connection: {exc or 'end of stream'}"))

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    async def hand_over(self, group: Sequence[Message]) -> None:
        """Give messages to the peer, exchange by exchange."""
        for exchanges in zip(*group, strict=True):
            self._awaited = sum(exchange.answers for exchange in exchanges)
            self._answered = asyncio.get_running_loop().create_future()
            self._transport.write(b"".join(exchange.data for exchange in exchanges))
            await self._answered

    def _fail(self, fault: BenchError) -> None:
        if not self._answered.done():
            self._answered.set_exception(fault)

    def _cut(self, end: int) -> bytes:
        answer = bytes(self._buffer[:end])
        del self._buffer[:end]
        return answer

    @abc.abstractmethod
    def _next_answer(self) -> bytes | None: ...

    @abc.abstractmethod
    def _accepts(self, answer: bytes) -> bool: ...


class HttpClient(LineClient):
    """HTTP/1.1 keep-alive; understands answers with a Content-Length, which is all it will get."""

    def _next_answer(self) -> bytes | None:
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return None
        head = bytes(self._buffer[:head_end]).lower()
        end = head_end + 4 + int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        return self._cut(end) if len(self._buffer) >= end else None

    def _accepts(self, answer: bytes) -> bool:
        return answer.startswith(HTTP_ACCEPTED)


class SmtpClient(LineClient):
    """SMTP as a well-behaved bulk sender speaks it: EHLO once, PIPELINING, one connection for all its mail."""

    greeting = 1

    async def open(self) -> None:
        """Await the greeting, say EHLO."""
        await self._answered
        await self.hand_over([(Exchange(b"EHLO load.bench.example.org\r\n"),)])

    def _next_answer(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n")) >= 0:
            line = self._cut(end + 2)
            if line[3:4] != b"-":  # only the last line of a reply counts
                return line
        return None

    def _accepts(self, answer: bytes) -> bool:
        return answer[:1] in {b"2", b"3"}


class RedisClient(LineClient):
    """Redis's protocol, as far as XADD needs it: an answer is an entry's id (`$15`, the id), or one line."""

    def _next_answer(self) -> bytes | None:
        end = self._buffer.find(b"\r\n") + 2
        if end >= 2 and self._buffer.startswith(b"$"):
            end += int(self._buffer[1 : end - 2]) + 2
        return self._cut(end) if 2 <= end <= len(self._buffer) else None

    def _accepts(self, answer: bytes) -> bool:
        return answer.startswith(b"$")


async def acknowledged(redis: Any) -> int:
    """Return how many entries of the stream were acknowledged so far; `redis` is redis-py's asynchronous client."""
    if not await redis.exists(STREAM):
        return 0
    return sum((group["entries-read"] or 0) - group["pending"] for group in await redis.xinfo_groups(STREAM))
