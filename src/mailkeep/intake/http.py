"""The internal HTTP listener's application: takes commands in, answers when they are durable.

The calls of the hot path are here: login codes, single commands, batches. Everything else (reads, operators' writes) goes to
the application it is given. The bearer tokens, where there are any, guard all of it, unknown paths too. A command's key may
also stand in its member `idempotency_key`.

Called by uvicorn, see `mailkeep.intake.listener`.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from mailkeep.aside import LARGE_BYTES, aside
from mailkeep.core.command import (
    MAX_KEY_CHARS,
    CommandError,
    DeliveryRequest,
    FailureCode,
    LoginCodeRequest,
    parse_delivery_id,
    parse_login_code,
    parse_request,
)
from mailkeep.core.host import is_local
from mailkeep.intake.accept import Accept, Accepted
from mailkeep.intake.application import (
    KEY_HEADER,
    Answer,
    HttpApplication,
    TakenRequest,
    acceptance,
    key_problem,
    max_body_bytes,
    not_allowed,
    refusal,
    respond,
    said,
)
from mailkeep.intake.body import Files, check_json, decode_json, decode_large, payload_with_files
from mailkeep.intake.problems import HttpCode, Problem, ProblemError, make_problem

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
_READS: Final = frozenset({"GET", "HEAD"})


class LoginCodeAnswer(msgspec.Struct, frozen=True):
    """The answer to a login code: `sent` says that it is durable and will be sent."""

    outcome: str
    delivery_id: UUID


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


class _Call(msgspec.Struct, frozen=True):
    take: Callable[[TakenRequest], Awaitable[Answer]]
    max_bytes: int


_LOGIN_CODE: Final = msgspec.json.Decoder(LoginCodeRequest)
_DELIVERY: Final = msgspec.json.Decoder(DeliveryRequest)
_BATCH: Final = msgspec.json.Decoder(BatchRequest)


class InternalHttpApp(HttpApplication):
    """The ASGI application. `operator` answers what is not intake; without `tokens` everybody may call.

    `for_this_machine`: only requests that name this machine are answered. Nothing else keeps a web page out then, whose name leads
    here, in a browser on this machine.
    """

    def __init__(
        self,
        *,
        accept: Accept,
        operator: ASGIApp,
        tokens: tuple[str, ...] = (),
        for_this_machine: bool = False,
    ) -> None:
        super().__init__("internal_http")
        self._accept = accept
        self._operator = operator
        self._tokens = tuple(token.encode() for token in tokens)
        self._for_this_machine = for_this_machine
        max_bytes = max_body_bytes(accept.policy.rules.limits.message_bytes)
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
            problem = make_problem(HttpCode.UNAUTHORIZED, "send it as Authorization: Bearer …")
            await respond(refusal(problem), send)
        elif self._for_this_machine and not is_local(headers.get(b"host", b"localhost").decode("latin-1")):
            detail = "without tokens it answers under the names of this machine only, such as localhost"
            await respond(refusal(make_problem(HttpCode.MISDIRECTED, detail)), send)
        elif call is None or (path == DELIVERIES and method in _READS):
            await self._delegate(scope, receive, send)
        elif method != "POST":
            await respond(not_allowed("GET, HEAD, POST" if path == DELIVERIES else "POST"), send)
        else:
            await self.serve(call.take, call.max_bytes, scope, receive, send)

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
            self.complain(fault)

    # -- the calls ---------------------------------------------------------------------------------------------

    async def _take_login_code(self, request: TakenRequest) -> Answer:
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
        return said(LoginCodeAnswer(outcome, accepted.delivery_id), replayed=accepted.replayed)

    async def _take_delivery(self, request: TakenRequest) -> Answer:
        delivery = (
            await request.decode_aside(_DELIVERY, _with_files)
            if request.is_large
            else decode_json(request.body, _DELIVERY)
        )
        if request.key is not None and delivery.idempotency_key not in (None, request.key):
            raise ProblemError(key_problem("differs from the member idempotency_key"))
        accepted = await self._take(delivery, request.key, request.traceparent)
        return acceptance(202, accepted)

    async def _take_batch(self, request: TakenRequest) -> Answer:
        if request.is_large:
            commands = (await aside(_decode_batch, request.body)).commands
        else:
            commands = decode_json(request.body, _BATCH).commands
        if len(commands) > MAX_COMMANDS:
            raise CommandError(FailureCode.TOO_LARGE, "commands", f"more than {MAX_COMMANDS} commands")
        if request.key is not None and len(request.key) > MAX_BATCH_KEY_CHARS:
            raise ProblemError(key_problem(f"of a batch must be at most {MAX_BATCH_KEY_CHARS} characters"))
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
            return refusal(answers[0].problem)
        return said(BatchAnswer(answers))

    async def _take_one(
        self, command: msgspec.Raw, key: str | None, traceparent: str | None
    ) -> CommandAnswer:
        try:
            if len(memoryview(command)) > LARGE_BYTES:
                delivery = await aside(decode_large, bytes(command), _DELIVERY, _with_files)
            else:
                delivery = decode_json(command, _DELIVERY)
            accepted = await self._take(delivery, delivery.idempotency_key or key, traceparent)
        except Exception as fault:  # noqa: BLE001 - a boundary: this command gets a problem, the others go on
            problem = self.problem(fault)
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


def _decode_batch(body: bytes | bytearray) -> BatchRequest:
    check_json(body)
    return decode_json(body, _BATCH)


def _with_files(delivery: DeliveryRequest, files: Files) -> DeliveryRequest | None:
    payload = payload_with_files(delivery.payload, files)
    return None if payload is None else msgspec.structs.replace(delivery, payload=payload)
