"""The internal HTTP listener's application: takes commands in, answers when they are durable.

One raw ASGI application, because each call of the hot path costs less here than routing and validation cost in a
framework: login codes, single commands, batches. Everything else (reads, operators' writes) goes to the application it
is given. The bearer tokens, where there are any, guard all of it, unknown paths too.

Idempotency: the `Idempotency-Key` header (1 to 255 visible ASCII characters, bare or quoted) or the member
`idempotency_key`. The same key and command are answered alike, with `Idempotent-Replayed: true`; another command is
refused (422). There is no 409: the second of two concurrent calls waits for the commit of the first. What is refused
reserves nothing. 503 says that nothing is known to be stored; repeating the call under its key is safe.

Never logs or answers what a request holds. Called by uvicorn, see `mailkeep.intake.listener`.
"""

import asyncio
import hmac
import re
import traceback
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

import msgspec
import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from mailkeep.core.command import (
    MAX_KEY_CHARS,
    CommandError,
    DeliveryRequest,
    FailureCode,
    LoginCodeRequest,
    check_key,
    parse_delivery_id,
    parse_login_code,
    parse_request,
)
from mailkeep.faults import FaultPoint, reach
from mailkeep.intake.accept import Accept, Accepted
from mailkeep.intake.body import check_content_type, check_json, decode_json
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
from mailkeep.telemetry import tracing

DELIVERIES: Final = "/api/v1/internal/deliveries"
BATCH: Final = f"{DELIVERIES}/batch"
LOGIN_CODES: Final = "/api/v1/internal/login-code-deliveries"

MAX_COMMANDS: Final = 1000
"""Commands of one batch (contract section 4.1)."""
SLICE: Final = 16
"""Commands of a batch prepared before others get a turn: a login code waits a few milliseconds at most."""
MAX_BATCH_KEY_CHARS: Final = MAX_KEY_CHARS - len(f"#{MAX_COMMANDS - 1}")
"""Leaves room for the index that makes a key for each command."""
MAX_LOGIN_CODE_BYTES: Final = 16 * 1024
ENCODED_SHARE: Final = 1.4
"""Bytes of JSON for each byte of the finished message: attachments come in base64 and go out in it, with line ends."""
ENVELOPE_BYTES: Final = 256 * 1024
"""What a body may hold beside that: 100 recipients, variables, names."""
MAX_HELD_BYTES: Final = 256 * 1024 * 1024
"""Bytes of all bodies that came in pieces and are not answered yet; past it callers are told to come back."""

KEY_HEADER: Final = "Idempotency-Key"
_READS: Final = frozenset({"GET", "HEAD"})
_QUOTED_KEY: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_JSON: Final = (b"content-type", b"application/json")
_PROBLEM: Final = (b"content-type", MEDIA_TYPE)
_REPLAYED: Final = (b"idempotent-replayed", b"true")


class LoginCodeAnswer(msgspec.Struct, frozen=True):
    """The answer to a login code: `sent` says that it is durable and will be sent."""

    outcome: str
    delivery_id: UUID


class DeliveryAnswer(msgspec.Struct, frozen=True):
    """The answer to a command that was taken; `status` is the delivery's at birth."""

    delivery_id: UUID
    status: str


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Commands that are judged and taken each by itself."""

    commands: list[msgspec.Raw]


class CommandAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to one command of a batch; `status` is what the single call would have answered."""

    status: int
    delivery_id: UUID | None = None
    replayed: bool = False
    problem: Problem | None = None


class BatchAnswer(msgspec.Struct, frozen=True):
    """One answer for each command, in order."""

    answers: list[CommandAnswer]


class ClientGoneError(Exception):
    """The caller left before its request was complete: nobody waits for an answer."""


class _Request(msgspec.Struct, frozen=True):
    key: str | None
    traceparent: str | None
    body: bytes | bytearray


class _Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes
    headers: Headers


class _Call(msgspec.Struct, frozen=True):
    answer: Callable[[_Request], Awaitable[_Answer]]
    max_bytes: int


_ENCODER: Final = msgspec.json.Encoder()
_LOGIN_CODE: Final = msgspec.json.Decoder(LoginCodeRequest)
_DELIVERY: Final = msgspec.json.Decoder(DeliveryRequest)
_BATCH: Final = msgspec.json.Decoder(BatchRequest)


class InternalHttpApp:
    """The ASGI application. `operator` answers what is not intake; without `tokens` everybody may call."""

    def __init__(self, *, accept: Accept, operator: ASGIApp, tokens: tuple[str, ...] = ()) -> None:
        self._accept = accept
        self._operator = operator
        self._tokens = tuple(token.encode() for token in tokens)
        self._held_bytes = 0
        self._log = structlog.get_logger("internal_http")
        max_bytes = int(accept.policy.rules.limits.message_bytes * ENCODED_SHARE) + ENVELOPE_BYTES
        self._calls = {
            LOGIN_CODES: _Call(self._take_login_code, MAX_LOGIN_CODE_BYTES),
            DELIVERIES: _Call(self._take_delivery, max_bytes),
            BATCH: _Call(self._take_batch, max_bytes),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        path, method = scope["path"], scope["method"]
        call = self._calls.get(path)
        if not self._may_call(headers):
            answer = _refusal(make_problem(HttpCode.UNAUTHORIZED, "send it as Authorization: Bearer …"))
        elif call is None or (path == DELIVERIES and method in _READS):
            await self._delegate(scope, receive, send)
            return
        elif method != "POST":
            answer = _not_allowed("GET, HEAD, POST" if path == DELIVERIES else "POST")
        else:
            try:
                with tracing.request_span(f"POST {path}", _header_traceparent(headers)):
                    answer = await self._answer(call, scope, headers, receive)
                    tracing.tell_status(answer.status)
            except ClientGoneError:
                return
        length = (b"content-length", str(len(answer.body)).encode())
        await send(
            {"type": "http.response.start", "status": answer.status, "headers": [*answer.headers, length]}
        )
        await send({"type": "http.response.body", "body": answer.body})
        if answer.status < 300:
            reach(FaultPoint.ACCEPT_AFTER_ANSWER)

    def _may_call(self, headers: dict[bytes, bytes]) -> bool:
        if not self._tokens:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        matches = [hmac.compare_digest(given.strip(), token) for token in self._tokens]
        return any(matches) and scheme.lower() == b"bearer"

    async def _delegate(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._operator(scope, receive, send)
        except Exception as fault:  # noqa: BLE001 - a boundary: it has answered with a problem, the next call is served
            self._complain(fault)

    # -- one request -------------------------------------------------------------------------------------------

    async def _answer(
        self, call: _Call, scope: Scope, headers: dict[bytes, bytes], receive: Receive
    ) -> _Answer:
        held = bytearray()
        try:
            check_content_type(headers)
            key, traceparent = (
                header_key(scope["headers"]),
                tracing.current_traceparent(_header_traceparent(headers)),
            )
            _check_size(int(headers.get(b"content-length", 0)), call.max_bytes)
            body = await self._read(receive, held, call.max_bytes)
            check_json(body)
            return await call.answer(_Request(key, traceparent, body))
        except ClientGoneError:
            raise
        except Exception as fault:  # noqa: BLE001 - a boundary: the caller gets a problem, the next one is served
            return _refusal(self._problem(fault))
        finally:
            self._held_bytes -= len(held)

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

    def _problem(self, fault: Exception) -> Problem:
        problem = problem_of(fault)
        if problem.code == HttpCode.INTERNAL_ERROR:
            self._complain(fault)
        return problem

    def _complain(self, fault: Exception) -> None:
        # Its words may hold what the request held; its type and place do not.
        place = traceback.extract_tb(fault.__traceback__)[-1]
        self._log.error(
            "request met a fault", error=type(fault).__name__, at=f"{place.filename}:{place.lineno}"
        )

    # -- the calls ---------------------------------------------------------------------------------------------

    async def _take_login_code(self, request: _Request) -> _Answer:
        if request.key is None:
            raise ProblemError(
                make_problem(
                    FailureCode.MISSING_FIELD,
                    "the header Idempotency-Key is required",
                    field=KEY_HEADER,
                    status=400,
                )
            )
        policy = self._accept.policy
        login_code = decode_json(request.body, _LOGIN_CODE)
        command = parse_login_code(login_code, policy.rules, policy.auth_expiry_s)
        accepted = await self._accept.accept(command, key=request.key, traceparent=request.traceparent)
        outcome = "suppressed" if accepted.suppressed else "sent"
        return _acceptance(200, LoginCodeAnswer(outcome, accepted.delivery_id), accepted)

    async def _take_delivery(self, request: _Request) -> _Answer:
        delivery = decode_json(request.body, _DELIVERY)
        if request.key is not None and delivery.idempotency_key not in (None, request.key):
            raise ProblemError(_key_problem("differs from the member idempotency_key"))
        accepted = await self._take(delivery, request.key, request.traceparent)
        return _acceptance(202, DeliveryAnswer(accepted.delivery_id, accepted.status), accepted)

    async def _take_batch(self, request: _Request) -> _Answer:
        commands = decode_json(request.body, _BATCH).commands
        if len(commands) > MAX_COMMANDS:
            raise CommandError(FailureCode.TOO_LARGE, "commands", f"more than {MAX_COMMANDS} commands")
        if request.key is not None and len(request.key) > MAX_BATCH_KEY_CHARS:
            raise ProblemError(_key_problem(f"of a batch must be at most {MAX_BATCH_KEY_CHARS} characters"))
        taking: list[asyncio.Task[CommandAnswer]] = []
        async with asyncio.TaskGroup() as group:
            for index, command in enumerate(commands):
                key = None if request.key is None else f"{request.key}#{index}"
                taking.append(group.create_task(self._take_one(command, key, request.traceparent)))
                if index % SLICE == SLICE - 1:
                    await asyncio.sleep(0)
        answers = [task.result() for task in taking]
        if answers and all(answer.status == 503 for answer in answers):
            assert answers[0].problem is not None
            return _refusal(answers[0].problem)
        return _Answer(200, _ENCODER.encode(BatchAnswer(answers)), (_JSON,))

    async def _take_one(
        self, command: msgspec.Raw, key: str | None, traceparent: str | None
    ) -> CommandAnswer:
        try:
            delivery = decode_json(command, _DELIVERY)
            accepted = await self._take(delivery, delivery.idempotency_key or key, traceparent)
        except Exception as fault:  # noqa: BLE001 - a boundary: this command gets a problem, the others go on
            problem = self._problem(fault)
            return CommandAnswer(problem.status, problem=problem)
        return CommandAnswer(202, accepted.delivery_id, accepted.replayed)

    async def _take(self, delivery: DeliveryRequest, key: str | None, traceparent: str | None) -> Accepted:
        delivery_id = delivery.delivery_id
        return await self._accept.accept(
            parse_request(delivery, self._accept.policy.rules),
            key=key or delivery.idempotency_key,
            delivery_id=None if delivery_id is None else parse_delivery_id(delivery_id, self._accept.now_s()),
            traceparent=delivery.traceparent or traceparent,
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
        raise ProblemError(_key_problem("must be given once, bare or as one quoted string"))
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text
    try:
        check_key(key)
    except CommandError as fault:
        raise ProblemError(_key_problem(fault.message)) from None
    return key


def _key_problem(why: str) -> Problem:
    detail = f"the header {KEY_HEADER} {why}"
    return make_problem(FailureCode.INVALID_FIELD, detail, field=KEY_HEADER, status=400)


def _header_traceparent(headers: dict[bytes, bytes]) -> str | None:
    value = headers.get(b"traceparent")
    return value.decode("ascii") if value and _TRACEPARENT.fullmatch(value) else None


def _check_size(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        detail = f"the body is larger than {max_bytes} bytes"
        raise ProblemError(make_problem(FailureCode.TOO_LARGE, detail, status=413))


# -- answers -----------------------------------------------------------------------------------------------------


def _acceptance(status: int, answer: msgspec.Struct, accepted: Accepted) -> _Answer:
    return _Answer(status, _ENCODER.encode(answer), (_JSON, _REPLAYED) if accepted.replayed else (_JSON,))


def _refusal(problem: Problem, headers: Headers = ()) -> _Answer:
    return _Answer(problem.status, _ENCODER.encode(problem), (_PROBLEM, *problem.headers, *headers))


def _not_allowed(methods: str) -> _Answer:
    problem = make_problem(HttpCode.METHOD_NOT_ALLOWED, f"use one of: {methods}")
    return _refusal(problem, ((b"allow", methods.encode()),))
