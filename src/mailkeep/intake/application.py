"""What the applications of both HTTP listeners share: one request read within its bounds, one answer, faults as problems.

Raw ASGI, because each call of the hot path costs less here than routing and validation cost in a framework. A subclass says
which calls it has and what they do; whatever those raise becomes a problem document.

Idempotency: the `Idempotency-Key` header (1 to 255 visible ASCII characters, bare or quoted). The same key and command are
answered alike, with `Idempotent-Replayed: true`; another command is refused (422). There is no 409: the second of two
concurrent calls waits for the commit of the first. What is refused reserves nothing. 503 says that nothing is known to be
stored; repeating the call under its key is safe.

Never logs or answers what a request holds.
"""

import re
import traceback
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar
from uuid import UUID

import msgspec
import structlog
from starlette.types import Receive, Scope, Send

from mailkeep.aside import LARGE_BYTES, aside
from mailkeep.core.command import CommandError, FailureCode, check_key
from mailkeep.faults import FaultPoint, reach
from mailkeep.intake.accept import Accepted
from mailkeep.intake.body import Files, check_content_type, check_json, decode_large
from mailkeep.intake.problems import (
    MEDIA_TYPE,
    Headers,
    HttpCode,
    Problem,
    ProblemError,
    make_problem,
    problem_of,
)
from mailkeep.store.group_commit import OverloadedError
from mailkeep.telemetry import metrics, tracing

ENCODED_SHARE: Final = 1.4
"""Bytes of JSON for each byte of the finished message: attachments come in base64 and go out in it, with line ends."""
ENVELOPE_BYTES: Final = 256 * 1024
"""What a body may hold beside that: 100 recipients, variables, names."""
MAX_HELD_BYTES: Final = 256 * 1024 * 1024
"""Bytes of all bodies of a listener that came in pieces and are not answered yet; past it callers are told to come back."""

KEY_HEADER: Final = "Idempotency-Key"
_QUOTED_KEY: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_JSON: Final = (b"content-type", b"application/json")
_PROBLEM: Final = (b"content-type", MEDIA_TYPE)
_REPLAYED: Final = (b"idempotent-replayed", b"true")
_ENCODER: Final = msgspec.json.Encoder()
T = TypeVar("T")


class DeliveryAnswer(msgspec.Struct, frozen=True, gc=False):
    """The answer to a command that was taken; `status` is the delivery's at birth."""

    delivery_id: UUID
    status: str


class TakenRequest(msgspec.Struct, frozen=True, gc=False):
    """A request that came whole and holds JSON, which is checked where the body is small; what came in pieces is a bytearray."""

    key: str | None
    traceparent: str | None
    body: bytes | bytearray

    @property
    def is_large(self) -> bool:
        """Whether its body is to be worked on aside."""
        return len(self.body) > LARGE_BYTES

    async def decode_aside(
        self, decoder: "msgspec.json.Decoder[T]", give_back: Callable[[T, Files], T | None]
    ) -> T:
        """Return what `decode_large` makes of the body, of which nothing is left then. Raises `CommandError`."""
        decoded = await aside(decode_large, self.body, decoder, give_back)
        if isinstance(self.body, bytearray):
            self.body.clear()  # what it held is held decoded from now on
        return decoded


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What is answered."""

    status: int
    body: bytes
    headers: Headers


class ClientGoneError(Exception):
    """The caller left before its request was complete: nobody waits for an answer."""


class HttpApplication:
    """The common part of an ASGI application. `logger` is the name under which its faults are logged."""

    def __init__(self, logger: str) -> None:
        self._held_bytes = 0
        self._log = structlog.get_logger(logger)

    async def serve(
        self,
        take: Callable[[TakenRequest], Awaitable[Answer]],
        max_bytes: int,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Read one POST of at most `max_bytes`, let `take` answer it, and say so."""
        given = _header_traceparent(scope)
        try:
            with tracing.request_span(f"POST {scope['path']}", given) as span:
                answer = await self._answer(
                    take, max_bytes, scope, receive, tracing.traceparent_of(span, given)
                )
                tracing.tell_status(span, answer.status)
        except ClientGoneError:
            return
        await respond(answer, send)
        if answer.status < 300:
            reach(FaultPoint.ACCEPT_AFTER_ANSWER)

    async def _answer(
        self,
        take: Callable[[TakenRequest], Awaitable[Answer]],
        max_bytes: int,
        scope: Scope,
        receive: Receive,
        traceparent: str | None,
    ) -> Answer:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        held = bytearray()
        held_bytes = 0  # of it, whoever clears it
        try:
            check_content_type(headers)
            key = header_key(scope["headers"])
            _check_size(int(headers.get(b"content-length", 0)), max_bytes)
            body = await self._read(receive, held, max_bytes)
            held_bytes = len(held)
            if len(body) <= LARGE_BYTES:
                check_json(body)
            return await take(TakenRequest(key, traceparent, body))
        except ClientGoneError:
            raise
        except Exception as fault:  # noqa: BLE001 - a boundary: the caller gets a problem, the next one is served
            return self.refusal_of(fault)
        finally:
            self._held_bytes -= held_bytes or len(held)

    async def _read(self, receive: Receive, held: bytearray, max_bytes: int) -> bytes | bytearray:
        """Return the body; one that comes in pieces is gathered in `held`."""
        message = await receive()
        while message["type"] == "http.request":
            body: bytes = message["body"]
            _check_size(len(held) + len(body), max_bytes)
            if not held and not message["more_body"]:
                return body
            held += body
            self._held_bytes += len(body)
            if self._held_bytes > MAX_HELD_BYTES:
                raise OverloadedError(f"bodies of more than {MAX_HELD_BYTES} bytes are held")
            if not message["more_body"]:
                return held
            message = await receive()
        raise ClientGoneError

    def refusal_of(self, fault: Exception) -> Answer:
        """Return the answer for whatever ended a request; a fault of ours is logged."""
        headers = fault.headers if isinstance(fault, ProblemError) else ()
        return refusal(self.problem(fault), headers)

    def problem(self, fault: Exception) -> Problem:
        """Return the problem document for whatever ended a request; a fault of ours is logged."""
        problem = problem_of(fault)
        if problem.code == HttpCode.INTERNAL_ERROR:
            self.complain(fault)
        elif problem.code == FailureCode.RESERVED_DOMAIN:
            self._log.warning("request for a reserved domain refused", field=problem.field)
            metrics.count(metrics.RESERVED_DOMAIN, (("http",),))
        return problem

    def complain(self, fault: Exception) -> None:
        """Log a fault of ours."""
        # Its words may hold what the request held; its type and place do not.
        place = traceback.extract_tb(fault.__traceback__)[-1]
        self._log.error(
            "request met a fault", error=type(fault).__name__, at=f"{place.filename}:{place.lineno}"
        )


# -- headers -----------------------------------------------------------------------------------------------------


def header_key(headers: list[tuple[bytes, bytes]]) -> str | None:
    """Return the idempotency key of a request, None if it has none. Raises `ProblemError`."""
    given = {value for name, value in headers if name == b"idempotency-key"}
    if not given:
        return None
    text = given.pop().decode("latin-1").strip()
    quoted = _QUOTED_KEY.fullmatch(text)
    if given or (text.startswith('"') and not quoted):
        raise ProblemError(key_problem("must be given once, bare or as one quoted string"))
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text
    try:
        check_key(key)
    except CommandError as fault:
        raise ProblemError(key_problem(fault.message)) from None
    return key


def key_problem(why: str) -> Problem:
    """Return the problem of an idempotency key."""
    detail = f"the header {KEY_HEADER} {why}"
    return make_problem(FailureCode.INVALID_FIELD, detail, field=KEY_HEADER, status=400)


def _header_traceparent(scope: Scope) -> str | None:
    value = dict(scope["headers"]).get(b"traceparent")
    return value.decode("ascii") if value and _TRACEPARENT.fullmatch(value) else None


def _check_size(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        detail = f"the body is larger than {max_bytes} bytes"
        raise ProblemError(make_problem(FailureCode.TOO_LARGE, detail, status=413))


def max_body_bytes(message_bytes: int) -> int:
    """Return how large the body of a command may be whose message may have `message_bytes`."""
    return int(message_bytes * ENCODED_SHARE) + ENVELOPE_BYTES


# -- answers -----------------------------------------------------------------------------------------------------


async def respond(answer: Answer, send: Send) -> None:
    """Send `answer`."""
    length = (b"content-length", str(len(answer.body)).encode())
    await send({"type": "http.response.start", "status": answer.status, "headers": [*answer.headers, length]})
    await send({"type": "http.response.body", "body": answer.body})


def said(answer: msgspec.Struct, *, status: int = 200, replayed: bool = False) -> Answer:
    """Return `answer` as JSON."""
    return Answer(status, _ENCODER.encode(answer), (_JSON, _REPLAYED) if replayed else (_JSON,))


def acceptance(status: int, accepted: Accepted) -> Answer:
    """Return the answer to a command that was taken."""
    answer = DeliveryAnswer(accepted.delivery_id, accepted.status)
    return said(answer, status=status, replayed=accepted.replayed)


def refusal(problem: Problem, headers: Headers = ()) -> Answer:
    """Return `problem` as an answer; `headers` stand for the usual ones of the same names."""
    named = {name for name, _ in headers}
    usual = tuple(header for header in problem.headers if header[0] not in named)
    return Answer(problem.status, _ENCODER.encode(problem), (_PROBLEM, *usual, *headers))


def not_allowed(methods: str) -> Answer:
    """Return the answer to a method that a path does not have."""
    problem = make_problem(HttpCode.METHOD_NOT_ALLOWED, f"use one of: {methods}")
    return refusal(problem, ((b"allow", methods.encode()),))
