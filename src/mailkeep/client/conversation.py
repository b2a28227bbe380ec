"""The calls, without I/O: each is a generator that yields tries and waits, is sent what came of them, and returns a value.

`Client` and `AsyncClient` carry them out; that a repeat uses the first try's idempotency key, what is repeated and for how
long is decided here alone. Repeated are connections that fail, are cut or time out, answers 408, 425, 429, 5xx and 409 with
`Retry-After`, and whatever is no answer of Mailkeep's; all other 4xx are final.
"""

import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Final, TypeAlias, TypeVar
from uuid import UUID

from mailkeep.client.answers import (
    Accepted,
    Attempt,
    Delivery,
    LoginCodeAccepted,
    read_accepted,
    read_attempts,
    read_batch,
    read_delivery,
    read_login_code,
    read_refusal,
)
from mailkeep.client.errors import BatchError, RejectedError, UnavailableError
from mailkeep.client.http11 import Answer, MalformedAnswerError, Request
from mailkeep.client.keys import check_key, new_key
from mailkeep.client.mail import AnyMail, command, to_json

API: Final = "/api/v1/internal"
DELIVERIES: Final = f"{API}/deliveries"
LOGIN_CODES: Final = f"{API}/login-code-deliveries"

FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 5.0
MAX_TRIES: Final = 1000
"""The deadline ends a call long before; this ends one whose waits are all drawn as zero."""
BATCH_COMMANDS: Final = 500
"""Of one request: half of what Mailkeep takes, enough to make its commit cheap."""
BATCH_BYTES: Final = 8 * 1024 * 1024
"""Of one request, unless a single mail is larger: well below what Mailkeep takes."""

_PASSING: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Try:
    """Send `request` and answer with an `Answer`, or a `Fault` after `timeout_s` at the latest."""

    request: Request
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for `wait_s`."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class Fault:
    """No answer came; `reason` holds nothing of the request."""

    reason: str


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may take: each try, and all of them together. `deadline_s` 0: one try."""

    timeout_s: float = 10.0
    deadline_s: float = 30.0
    clock: Callable[[], float] = time.monotonic


T = TypeVar("T")
Conversation: TypeAlias = Generator[Try | Wait, Answer | Fault | None, T]
BatchAnswer: TypeAlias = Accepted | RejectedError | UnavailableError


class Tries:
    """The tries of one call: how long the next may take, and how long to wait before it."""

    def __init__(self, patience: Patience, key: str | None) -> None:
        self._patience = patience
        self._key = key
        self._ends_at = patience.clock() + patience.deadline_s
        self._done = 0

    def ask(self, request: Request, read: Callable[[Answer], T]) -> Conversation[T]:
        """Repeat `request` until it is settled. Raises `RejectedError`, `UnavailableError`."""
        while True:
            came = yield self.next_try(request)
            if isinstance(came, Answer):
                if 400 <= came.status < 500 and not _is_passing(came):
                    raise read_refusal(came)
                if 200 <= came.status < 300:
                    try:
                        return read(came)
                    except (KeyError, TypeError, ValueError):
                        came = Fault("an answer that is not Mailkeep's")
            assert came is not None
            yield from self.wait(came)

    def next_try(self, request: Request) -> Try:
        """Return the next try."""
        left_s = self._ends_at - self._patience.clock()
        timeout_s = self._patience.timeout_s
        self._done += 1
        return Try(request, timeout_s if self._done == 1 else min(timeout_s, max(left_s, 0.0)))

    def wait(self, came: Answer | Fault) -> Conversation[None]:
        """Wait before the next try: full jitter, and no less than was asked for. Raises `UnavailableError`."""
        asked_s = _retry_after_s(came) if isinstance(came, Answer) else 0.0
        longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self._done - 1, 30))
        wait_s = asked_s + random.uniform(0, longest_s)  # noqa: S311 - jitter, not a secret
        if self._done >= MAX_TRIES or self._patience.clock() + wait_s >= self._ends_at:
            reason = came.reason if isinstance(came, Fault) else f"HTTP {came.status}"
            raise UnavailableError(reason, self._done, self._key)
        yield Wait(wait_s)


def send(mail: AnyMail, patience: Patience) -> Conversation[Accepted]:
    """Hand over one mail."""
    key = mail.idempotency_key or new_key()
    request = Request("POST", DELIVERIES, to_json(command(mail)).encode("utf-8", "surrogatepass"), key)
    return (yield from Tries(patience, key).ask(request, read_accepted))


def send_login_code(
    email: str,
    code: str,
    locale: str,
    *,
    purpose: str | None,
    expires_in_s: int | None,
    idempotency_key: str | None,
    patience: Patience,
) -> Conversation[LoginCodeAccepted]:
    """Hand over one login code."""
    key = new_key() if idempotency_key is None else check_key(idempotency_key)
    members = {
        "email": email,
        "code": code,
        "locale": locale,
        "purpose": purpose,
        "expires_in_s": expires_in_s,
    }
    given = {name: value for name, value in members.items() if value is not None}
    request = Request("POST", LOGIN_CODES, to_json(given).encode("utf-8", "surrogatepass"), key)
    return (yield from Tries(patience, key).ask(request, read_login_code))


def send_many(mails: Sequence[AnyMail], patience: Patience) -> Conversation[tuple[Accepted, ...]]:
    """Hand over many mails, each judged by itself. Raises `BatchError` unless all were accepted.

    `patience` is for each request, of up to `BATCH_COMMANDS` mails; after one that stays without an answer the rest is
    not tried.
    """
    commands = [_Command(mail.idempotency_key or new_key(), mail) for mail in mails]
    answers: list[BatchAnswer] = []
    for batch in _batches(commands):
        last = answers[-1] if answers else None
        if isinstance(last, UnavailableError):
            answers += [UnavailableError("not tried", 0, each.key) for each in batch]
        else:
            answers += yield from _send_batch(batch, patience)
    accepted = tuple(answer for answer in answers if isinstance(answer, Accepted))
    if len(accepted) < len(answers):
        raise BatchError(tuple(answers))
    return accepted


def get(delivery_id: UUID | str, patience: Patience) -> Conversation[Delivery]:
    """Read one delivery."""
    request = Request("GET", f"{DELIVERIES}/{UUID(str(delivery_id))}")
    return (yield from Tries(patience, None).ask(request, read_delivery))


def attempts(delivery_id: UUID | str, patience: Patience) -> Conversation[tuple[Attempt, ...]]:
    """Read the attempts of one delivery."""
    request = Request("GET", f"{DELIVERIES}/{UUID(str(delivery_id))}/attempts")
    return (yield from Tries(patience, None).ask(request, read_attempts))


class _Command:
    """One mail of a batch with its key, encoded once."""

    def __init__(self, key: str, mail: AnyMail) -> None:
        self.key = key
        self.encoded = to_json({**command(mail), "idempotency_key": key}).encode("utf-8", "surrogatepass")


def _batches(commands: Sequence[_Command]) -> Iterator[list[_Command]]:
    batch: list[_Command] = []
    size_bytes = 0
    for each in commands:
        if batch and (len(batch) == BATCH_COMMANDS or size_bytes + len(each.encoded) > BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(each)
        size_bytes += len(each.encoded)
    if batch:
        yield batch


def _send_batch(batch: Sequence[_Command], patience: Patience) -> Conversation[list[BatchAnswer]]:
    """Return one answer for each command; only those that are still open are sent again."""
    settled: dict[int, BatchAnswer] = {}
    tries = Tries(patience, None)
    try:
        while left := [index for index in range(len(batch)) if index not in settled]:
            body = b'{"commands":[' + b",".join(batch[index].encoded for index in left) + b"]}"
            request = Request("POST", f"{DELIVERIES}/batch", body)
            entries = yield from tries.ask(request, partial(read_batch, count=len(left)))
            passing = [entry for entry in entries if isinstance(entry, str)]
            settled |= {
                index: entry for index, entry in zip(left, entries, strict=True) if not isinstance(entry, str)
            }
            if passing:
                yield from tries.wait(Fault(passing[0]))
    except RejectedError as refusal:
        if refusal.status == 413 and len(batch) > 1:
            middle = len(batch) // 2
            return [
                *(yield from _send_batch(batch[:middle], patience)),
                *(yield from _send_batch(batch[middle:], patience)),
            ]
        return [settled.get(index, refusal) for index in range(len(batch))]
    except UnavailableError as fault:
        return [
            settled.get(index) or UnavailableError(fault.reason, fault.tries, each.key)
            for index, each in enumerate(batch)
        ]
    return [settled[index] for index in range(len(batch))]


def fault_of(fault: BaseException) -> Fault:
    """Return what kept an answer from coming, in a few words that hold nothing of the request."""
    match fault:
        case MalformedAnswerError():
            return Fault(str(fault))
        case TimeoutError():
            return Fault("timed out")
        case ssl.SSLError() | socket.gaierror():
            return Fault(str(fault.strerror))
        case OSError(errno=int(number)):
            return Fault(os.strerror(number))
        case _:
            return Fault("can't connect")


def _is_passing(answer: Answer) -> bool:
    return answer.status in _PASSING or (answer.status == 409 and "retry-after" in answer.headers)


def _retry_after_s(answer: Answer) -> float:
    """Return what the answer asks to wait: seconds or a date (RFC 9110 section 10.2.3)."""
    text = answer.headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
