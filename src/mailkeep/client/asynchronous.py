"""The client for asyncio: `AsyncClient` carries the same calls out over connections of the running loop."""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Final, Self, TypeVar
from uuid import UUID

from mailkeep.client import conversation
from mailkeep.client.answers import Accepted, Attempt, Delivery, LoginCodeAccepted
from mailkeep.client.conversation import Conversation, Fault, Patience, Try, Wait, fault_of
from mailkeep.client.http11 import (
    DEFAULT_URL,
    MAX_IDLE_S,
    Answer,
    AnswerReader,
    MalformedAnswerError,
    check_token,
    encode_request,
    parse_origin,
)
from mailkeep.client.mail import AnyMail

MAX_CONNECTIONS: Final = 64
"""At once; further calls wait within their time. Mailkeep commits in groups, more would not make it faster."""

T = TypeVar("T")


class AsyncClient:
    """Hands mail to Mailkeep. One for each event loop; can be used again after `close`.

    `timeout_s` bounds one try, `deadline_s` all tries of a call together (0: a single try). `token` is sent as a bearer
    token, `tls` is for a CA of your own or a client certificate. A cancelled call leaves the outcome unknown.

    Calls raise `RejectedError` when Mailkeep says no, `UnavailableError` when no answer settled them in time.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        token: str | None = None,
        timeout_s: float = 10.0,
        deadline_s: float = 30.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._origin = parse_origin(base_url)
        self._token = check_token(token)
        self._patience = Patience(timeout_s, deadline_s)
        self._tls = (tls or ssl.create_default_context()) if self._origin.is_tls else None
        self._idle: deque[_Connection] = deque()
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"AsyncClient({self._origin.authority!r})"

    async def send(self, mail: AnyMail) -> Accepted:
        """Hand over one mail and return when it is durable.

        Without an idempotency key of its own the call makes one and uses it for all its tries.
        """
        return await self._hold(conversation.send(mail, self._patience))

    async def send_many(self, mails: Sequence[AnyMail]) -> tuple[Accepted, ...]:
        """Hand over many mails with few requests and return when all are durable.

        Each is judged by itself. Raises `BatchError`, with an answer for each mail, unless all were accepted.
        """
        return await self._hold(conversation.send_many(mails, self._patience))

    async def send_login_code(
        self,
        email: str,
        code: str,
        locale: str,
        *,
        purpose: str | None = None,
        expires_in_s: int | None = None,
        idempotency_key: str | None = None,
    ) -> LoginCodeAccepted:
        """Hand over one login code and return when it is durable; an older one of that purpose is not sent any more."""
        return await self._hold(
            conversation.send_login_code(
                email,
                code,
                locale,
                purpose=purpose,
                expires_in_s=expires_in_s,
                idempotency_key=idempotency_key,
                patience=self._patience,
            )
        )

    async def get(self, delivery_id: UUID | str) -> Delivery:
        """Return one delivery. Raises `RejectedError` with the code `not_found` for an unknown id."""
        return await self._hold(conversation.get(delivery_id, self._patience))

    async def attempts(self, delivery_id: UUID | str) -> tuple[Attempt, ...]:
        """Return the attempts of one delivery in order. Raises `RejectedError` with the code `not_found`."""
        return await self._hold(conversation.attempts(delivery_id, self._patience))

    async def close(self) -> None:
        """Close the connections that nobody uses now."""
        while self._idle:
            await self._idle.pop().close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- carrying out ------------------------------------------------------------------------------------------

    async def _hold(self, talk: Conversation[T]) -> T:
        self._loop = self._loop or asyncio.get_running_loop()
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError("this AsyncClient belongs to another event loop")
        came: Answer | Fault | None = None
        try:
            while True:
                match talk.send(came):
                    case Try() as step:
                        came = await self._try(step)
                    case Wait(wait_s):
                        await asyncio.sleep(wait_s)
                        came = None
        except StopIteration as done:
            result: T = done.value
            return result

    async def _try(self, step: Try) -> Answer | Fault:
        data = encode_request(step.request, self._origin, self._token)
        try:
            async with asyncio.timeout(step.timeout_s), self._places:
                kept = self._take_idle()
                if kept is not None:
                    try:
                        return await self._exchange(kept, data)
                    except (OSError, MalformedAnswerError):
                        pass  # the usual end of an idle connection; a fresh one tells more
                return await self._exchange(await self._connect(), data)
        except (OSError, MalformedAnswerError) as fault:
            return fault_of(fault)

    async def _exchange(self, connection: "_Connection", data: bytes) -> Answer:
        answer = None
        try:
            answer = await connection.exchange(data)
        finally:
            if answer is not None and answer.reusable and connection.is_fresh():
                self._idle.append(connection)
            else:
                connection.abort()
        return answer

    async def _connect(self) -> "_Connection":
        _, connection = await asyncio.get_running_loop().create_connection(
            _Connection, self._origin.host, self._origin.port, ssl=self._tls
        )
        return connection

    def _take_idle(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_fresh():
                return connection
            connection.abort()
        return None


class _Connection(asyncio.Protocol):
    """One connection; what comes in without a request ends it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reader = AnswerReader()
        self._answer: asyncio.Future[Answer] | None = None
        self._lost = asyncio.get_running_loop().create_future()
        self._used_at = time.monotonic()

    def is_fresh(self) -> bool:
        """Whether it is open and was used a short time ago."""
        return not self._lost.done() and time.monotonic() - self._used_at < MAX_IDLE_S

    async def exchange(self, data: bytes) -> Answer:
        """Send a request and return its answer. Raises OSError, `MalformedAnswerError`."""
        assert self._transport is not None
        self._reader = AnswerReader()
        self._answer = asyncio.get_running_loop().create_future()
        # Nothing waits for the whole request to leave: who refuses it early, as with 413, is heard while it does.
        self._transport.write(data)
        answer = await self._answer
        self._used_at = time.monotonic()
        is_sent = self._transport.get_write_buffer_size() == 0
        return answer if is_sent else replace(answer, reusable=False)

    def abort(self) -> None:
        """Cut it."""
        assert self._transport is not None
        self._transport.abort()

    async def close(self) -> None:
        """Close it and wait until it is."""
        self.abort()
        await self._lost

    # -- asyncio.Protocol --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self._read(data)

    def eof_received(self) -> None:
        """Read to the end; the transport closes itself."""
        self._read(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange."""
        if not self._lost.done():
            self._lost.set_result(None)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or MalformedAnswerError("the connection was cut"))

    def _read(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.abort()
            return
        try:
            answer = self._reader.feed(data)
        except MalformedAnswerError as fault:
            self._answer.set_exception(fault)
            return
        if answer is not None:
            self._answer.set_result(answer)
