"""The load client: hands mail to a peer over HTTP or SMTP and notes when each hand-over began and was answered.

A process of its own on raw asyncio protocols, with every request built before the clock starts, so that it takes
little of the CPU that is being measured and about the same for both peers. A connection is used again for each
message and never has two in flight. Any answer but acceptance ends the bench: a benchmark of refusals says nothing.
"""

import abc
import asyncio
import itertools
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Final, Self, cast

import msgspec
import uvloop

from bench.errors import BenchError
from bench.mail import Exchange, Message, build
from bench.peer import Intake

HTTP_ACCEPTED: Final = b"HTTP/1.1 202 "
MAX_ANSWER_CHARS: Final = 400  # of a refusal, in the error


class LoadOrder(msgspec.Struct, frozen=True):
    """What to send: `tokens` over `connections`, as fast as they are answered or one every `pause_s`."""

    intake: Intake
    port: int
    tokens: range
    connections: int
    pause_s: float = 0.0


class Handover(msgspec.Struct, frozen=True):
    """When each token was offered and when it was accepted; `time.monotonic_ns`."""

    started_ns: dict[int, int]
    accepted_ns: dict[int, int]


class Client(asyncio.Protocol, abc.ABC):
    """One connection. What differs between protocols is how an answer is cut off the buffer and judged."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._awaited = 0
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

    async def open(self) -> None:
        """Do what the protocol wants before the first message."""

    async def hand_over(self, message: Message) -> None:
        """Give one message to the peer. Raises `BenchError` unless every answer is acceptance."""
        for exchange in message:
            self._awaited = exchange.answers
            self._answered = asyncio.get_running_loop().create_future()
            self._transport.write(exchange.data)
            await self._answered

    def _fail(self, fault: BenchError) -> None:
        if not self._answered.done():
            self._answered.set_exception(fault)

    @abc.abstractmethod
    def _next_answer(self) -> bytes | None: ...

    @abc.abstractmethod
    def _accepts(self, answer: bytes) -> bool: ...


class HttpClient(Client):
    """HTTP/1.1 keep-alive; understands answers with a Content-Length, which is all it will get."""

    def _next_answer(self) -> bytes | None:
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return None
        head = bytes(self._buffer[:head_end]).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        end = head_end + 4 + length
        if len(self._buffer) < end:
            return None
        answer = bytes(self._buffer[:end])
        del self._buffer[:end]
        return answer

    def _accepts(self, answer: bytes) -> bool:
        return answer.startswith(HTTP_ACCEPTED)


class SmtpClient(Client):
    """SMTP as a well-behaved bulk sender speaks it: EHLO once, PIPELINING, one connection for all its mail."""

    def __init__(self) -> None:
        super().__init__()
        self._awaited = 1  # the greeting

    async def open(self) -> None:
        """Await the greeting, say EHLO."""
        await self._answered
        await self.hand_over((Exchange(b"EHLO load.bench.sinkhole.test\r\n"),))

    def _next_answer(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            if line[3:4] != b"-":  # only the last line of a reply counts
                return line
        return None

    def _accepts(self, answer: bytes) -> bool:
        return answer[:1] in {b"2", b"3"}


class Load:
    """The load client's process: `with Load(order) as load:` builds the messages; then `start`, and `result` when `done`."""

    def __init__(self, order: LoadOrder) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, self._theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(order, self._theirs), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()
        self._pipe.recv()  # all messages are built
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()

    def start(self) -> None:
        """Start the clock."""
        self._pipe.send("start")

    def done(self, timeout_s: float) -> bool:
        """Wait until the order is carried out, at most `timeout_s`."""
        return self._pipe.poll(timeout_s)

    def result(self) -> Handover:
        """Return the outcome. Raises `BenchError` if the peer refused or broke off."""
        try:
            outcome: Handover | str = self._pipe.recv()
        except EOFError:
            raise BenchError("the load client failed; its traceback stands above") from None
        if isinstance(outcome, str):
            raise BenchError(outcome)
        return outcome


def _run(order: LoadOrder, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bench's own affair; it ends us
    messages = build(order.intake, order.tokens)
    pipe.send("ready")
    pipe.recv()
    try:
        pipe.send(uvloop.run(_carry_out(order, messages)))
    except (BenchError, OSError) as fault:
        pipe.send(str(fault))


async def _carry_out(order: LoadOrder, messages: list[Message]) -> Handover:
    loop = asyncio.get_running_loop()
    kind: Callable[[], Client] = SmtpClient if order.intake is Intake.SMTP else HttpClient
    clients = [
        (await loop.create_connection(kind, "127.0.0.1", order.port))[1] for _ in range(order.connections)
    ]
    for client in clients:
        await client.open()
    handover = Handover({}, {})
    begin_s = loop.time()
    due_s = (begin_s + place * order.pause_s for place in itertools.count())
    queue = zip(due_s, order.tokens, messages, strict=False)
    await asyncio.gather(*(_send(client, queue, handover) for client in clients))
    for client in clients:
        client.close()
    return handover


async def _send(client: Client, queue: Iterator[tuple[float, int, Message]], handover: Handover) -> None:
    loop = asyncio.get_running_loop()
    for due_s, token, message in queue:
        if due_s > loop.time():
            await asyncio.sleep(due_s - loop.time())
        handover.started_ns[token] = time.monotonic_ns()
        await client.hand_over(message)
        handover.accepted_ns[token] = time.monotonic_ns()
