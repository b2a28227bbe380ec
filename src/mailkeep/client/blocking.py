"""The client for threads: `Client` carries the calls out over plain sockets of the standard library.

Idle connections are kept and shared by all threads; none is shared with a forked child.
"""

import contextlib
import os
import selectors
import socket
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

MAX_IDLE: Final = 32
"""Connections kept for the next call; more threads than that are rarely between two calls."""
READ_BYTES: Final = 64 * 1024

T = TypeVar("T")


class Client:
    """Hands mail to Mailkeep. Safe to share between threads; can be used again after `close`.

    `timeout_s` bounds one try, `deadline_s` all tries of a call together (0: a single try; DNS look-ups are not bounded).
    `token` is sent as a bearer token, `tls` is for a CA of your own or a client certificate.

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

    def __repr__(self) -> str:
        return f"Client({self._origin.authority!r})"

    def send(self, mail: AnyMail) -> Accepted:
        """Hand over one mail and return when it is durable.

        Without an idempotency key of its own the call makes one and uses it for all its tries.
        """
        return self._hold(conversation.send(mail, self._patience))

    def send_many(self, mails: Sequence[AnyMail]) -> tuple[Accepted, ...]:
        """Hand over many mails with few requests and return when all are durable.

        Each is judged by itself. Raises `BatchError`, with an answer for each mail, unless all were accepted.
        """
        return self._hold(conversation.send_many(mails, self._patience))

    def send_login_code(
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
        return self._hold(
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

    def get(self, delivery_id: UUID | str) -> Delivery:
        """Return one delivery. Raises `RejectedError` with the code `not_found` for an unknown id."""
        return self._hold(conversation.get(delivery_id, self._patience))

    def attempts(self, delivery_id: UUID | str) -> tuple[Attempt, ...]:
        """Return the attempts of one delivery in order. Raises `RejectedError` with the code `not_found`."""
        return self._hold(conversation.attempts(delivery_id, self._patience))

    def close(self) -> None:
        """Close the connections that nobody uses now."""
        while (connection := self._take_idle()) is not None:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- carrying out ------------------------------------------------------------------------------------------

    def _hold(self, talk: Conversation[T]) -> T:
        came: Answer | Fault | None = None
        try:
            while True:
                match talk.send(came):
                    case Try() as step:
                        came = self._try(step)
                    case Wait(wait_s):
                        time.sleep(wait_s)
                        came = None
        except StopIteration as done:
            result: T = done.value
            return result

    def _try(self, step: Try) -> Answer | Fault:
        ends_at = time.monotonic() + step.timeout_s
        data = encode_request(step.request, self._origin, self._token)
        kept = self._take_idle()
        if kept is not None:
            try:
                return self._exchange(kept, data, ends_at)
            except (OSError, MalformedAnswerError):
                pass  # the usual end of an idle connection; a fresh one tells more
        try:
            return self._exchange(self._connect(ends_at), data, ends_at)
        except (OSError, MalformedAnswerError) as fault:
            return fault_of(fault)

    def _exchange(self, connection: "_Connection", data: bytes, ends_at: float) -> Answer:
        answer = None
        try:
            answer = connection.exchange(data, ends_at)
        finally:
            if answer is not None and answer.reusable:
                self._keep(connection)
            else:
                connection.close()
        return answer

    def _connect(self, ends_at: float) -> "_Connection":
        address = (self._origin.host, self._origin.port)
        plain = socket.create_connection(address, _left_s(ends_at))
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is None:
                return _Connection(plain)
            plain.settimeout(_left_s(ends_at))
            return _Connection(self._tls.wrap_socket(plain, server_hostname=self._origin.host))
        except BaseException:
            plain.close()
            raise

    # Without a lock, which a fork could leave held in the child: the operations of a deque are atomic.

    def _keep(self, connection: "_Connection") -> None:
        self._idle.append(connection)
        with contextlib.suppress(IndexError):
            oldest = self._idle.popleft()
            if oldest.is_fresh() and len(self._idle) < MAX_IDLE:
                self._idle.appendleft(oldest)
            else:
                oldest.close()

    def _take_idle(self) -> "_Connection | None":
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_fresh():
                return connection
            connection.close()


class _Connection:
    """One connection and the process that made it."""

    def __init__(self, socket_: socket.socket) -> None:
        self._socket = socket_
        self._pid = os.getpid()
        self._used_at = time.monotonic()

    def is_fresh(self) -> bool:
        """Whether it is this process's, was used a short time ago, and nothing came since, not even its end."""
        if self._pid != os.getpid() or time.monotonic() - self._used_at >= MAX_IDLE_S:
            return False
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            return not selector.select(0)

    def exchange(self, data: bytes, ends_at: float) -> Answer:
        """Send a request and return its answer. Raises OSError, `MalformedAnswerError`."""
        unsent = self._send(data, ends_at)
        reader, answer = AnswerReader(), None
        try:
            while answer is None:
                self._socket.settimeout(_left_s(ends_at))
                answer = reader.feed(self._socket.recv(READ_BYTES))
        except (OSError, MalformedAnswerError) as fault:
            raise unsent or fault from None
        self._used_at = time.monotonic()
        return answer if unsent is None else replace(answer, reusable=False)

    def _send(self, data: bytes, ends_at: float) -> OSError | None:
        # Who answers before the whole body is there, as with 413, may close while it is still being sent.
        try:
            self._socket.settimeout(_left_s(ends_at))
            self._socket.sendall(data)
        except TimeoutError:
            raise
        except OSError as fault:
            return fault
        return None

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def _left_s(ends_at: float) -> float:
    left_s = ends_at - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
