"""The operators' HTTP API (contract section 4.1): reads, and changes by hand, of queue and suppression list. Off the hot path.

Lists are cursor pages; a query parameter that is not known is a fault, since a filter that is silently ignored would show
the wrong mail. An unknown delivery answers 404, which also serves as the smoke request of a health check. Faults are
problem documents. The bearer tokens are checked before anything comes here, see `mailkeep.intake.http`.
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mailkeep.core.command import CommandError, FailureCode, check_line
from mailkeep.core.delivery import DeliveryClass
from mailkeep.intake.application import KEY_HEADER, header_key
from mailkeep.intake.body import check_content_type, check_json, decode_json, field_error
from mailkeep.intake.http import DELIVERIES
from mailkeep.intake.problems import (
    MEDIA_TYPE,
    Headers,
    HttpCode,
    Problem,
    ProblemError,
    make_problem,
    problem_of,
)
from mailkeep.operator.changes import (
    MAX_ACTOR_CHARS,
    MAX_REASON_CHARS,
    Changed,
    KeyTakenError,
    NoSuchDeliveryError,
    OperatorVerbs,
    Why,
    WrongStatusError,
)
from mailkeep.operator.erase import ErasureReport, ErasureRequest, LiveMailError, OperatorErasure
from mailkeep.operator.events import MAX_EVENTS, EventPage, OperatorEvents
from mailkeep.operator.explain import Explanation, OperatorExplain
from mailkeep.operator.malformed import MalformedPage, OperatorMalformed
from mailkeep.operator.queue import (
    FLUSHED,
    MAX_PAGE,
    AttemptView,
    DeliveryPage,
    DeliveryQuery,
    DeliveryView,
    OperatorQueue,
    ReplicaView,
)
from mailkeep.operator.redrive import OperatorRedrive, RedriveAnswer, RedriveRequest
from mailkeep.operator.suppressions import OperatorSuppressions, SuppressionPage
from mailkeep.store.changes import Verb
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.postgres import Store
from mailkeep.store.suppressions import Suppression

ROOT: Final = DELIVERIES.removesuffix("/deliveries")
DESCRIPTION: Final = "/openapi.json"
MAX_BODY_BYTES: Final = 4096
"""Of an operator's request: a filter, no mail."""
USUAL_PAGE: Final = 50
NO_SUCH_DELIVERY: Final = "no delivery has this id"

Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class ListParameters(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"delivery_class": "class"}
):
    """The query parameters of a list; `status` may be given several times, `rule` is what the last failure matched."""

    status: tuple[str, ...] = ()
    source: str | None = None
    delivery_class: str | None = None
    template: str | None = None
    recipient: str | None = None
    rule: str | None = None
    since: Instant | None = None
    until: Instant | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)] = USUAL_PAGE
    cursor: UUID | None = None


class MalformedParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query parameters of the list of malformed commands."""

    code: str | None = None
    source: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)] = USUAL_PAGE
    cursor: UUID | None = None


class SuppressionParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query parameters of the suppression list."""

    recipient: str | None = None
    reason: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)] = USUAL_PAGE
    cursor: UUID | None = None


class RemovalParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who removes a suppression, and why; recorded."""

    actor: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ACTOR_CHARS)] = "api"
    note: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REASON_CHARS)] = "removed over HTTP"


class EventParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query parameters of a page of events; `type` may be given several times."""

    type: tuple[str, ...] = ()
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_EVENTS)] = USUAL_PAGE
    after: str | None = None


class NoParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of what takes none."""


class FlushRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to make due now: exactly one of the first four. With `force` next hops that are out are probed at once.

    `actor` and `reason` are recorded with each delivery that it makes due.
    """

    delivery_id: UUID | None = None
    domain: str | None = None
    next_hop: str | None = None
    all: bool = False
    force: bool = False
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REASON_CHARS)] = FLUSHED.reason
    actor: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ACTOR_CHARS)] = FLUSHED.actor


class FlushAnswer(msgspec.Struct, frozen=True):
    """How many deliveries are due now."""

    flushed: int


class AttemptList(msgspec.Struct, frozen=True):
    """A delivery's attempts in order."""

    attempts: tuple[AttemptView, ...]


class ReplicaList(msgspec.Struct, frozen=True):
    """The replicas that are known."""

    replicas: tuple[ReplicaView, ...]


_NUMBERS: Final = frozenset({"limit"})
_REPEATED: Final = frozenset({"status", "type"})
_DIGITS: Final = re.compile(r"[0-9]{1,9}")
_ENCODER: Final = msgspec.json.Encoder()
_ERASURE: Final = msgspec.json.Decoder(ErasureRequest)
_REDRIVE: Final = msgspec.json.Decoder(RedriveRequest)
_FLUSH: Final = msgspec.json.Decoder(FlushRequest)
_WHY: Final = msgspec.json.Decoder(Why)
_REPLAYED: Final = {"idempotent-replayed": "true"}


def operator_api(
    store: Store, description: bytes, ladders: Mapping[DeliveryClass, tuple[float, ...]]
) -> Starlette:
    """Return the application over `store`; `description` is the OpenAPI document that it serves."""
    api = _OperatorApi(store, ladders)
    delivery = f"{DELIVERIES}/{{delivery_id}}"
    app = Starlette(
        routes=[
            Route(DELIVERIES, _answering(api.list_deliveries)),
            Route(delivery, _answering(api.show_delivery)),
            Route(f"{delivery}/attempts", _answering(api.list_attempts)),
            Route(f"{delivery}/explain", _answering(api.explain)),
            *(Route(f"{delivery}/{verb}", _answering(api.changing(verb)), methods=["POST"]) for verb in Verb),
            Route(f"{delivery}/resend", api.resend, methods=["POST"]),
            Route(f"{ROOT}/queue/flush", _answering(api.flush), methods=["POST"]),
            Route(f"{ROOT}/dead-letters", _answering(api.list_dead_letters)),
            Route(f"{ROOT}/dead-letters/redrive", _answering(api.redrive), methods=["POST"]),
            Route(f"{ROOT}/erasures", _answering(api.erase), methods=["POST"]),
            Route(f"{ROOT}/events", _answering(api.list_events)),
            Route(f"{ROOT}/replicas", _answering(api.list_replicas)),
            Route(f"{ROOT}/malformed-commands", _answering(api.list_malformed)),
            Route(f"{ROOT}/suppressions", _answering(api.list_suppressions)),
            Route(
                f"{ROOT}/suppressions/{{suppression_id}}",
                _answering(api.remove_suppression),
                methods=["DELETE"],
            ),
            Route(DESCRIPTION, _answering(_describing(description))),
        ],
        exception_handlers={
            NoSuchDeliveryError: _refuse_change,
            WrongStatusError: _refuse_change,
            KeyTakenError: _refuse_change,
            LiveMailError: _refuse_change,
            CommandError: _refuse,
            ProblemError: _refuse,
            StoreUnavailableError: _refuse,
            HTTPException: _refuse_route,
            Exception: _refuse,
        },
    )
    app.router.redirect_slashes = False
    return app


class _OperatorApi:
    """One method for each call; each returns what is encoded as the answer."""

    def __init__(self, store: Store, ladders: Mapping[DeliveryClass, tuple[float, ...]]) -> None:
        self._queue = OperatorQueue(store)
        self._malformed = OperatorMalformed(store)
        self._verbs = OperatorVerbs(store)
        self._explain = OperatorExplain(store, ladders)
        self._suppressions = OperatorSuppressions(store)
        self._redrive = OperatorRedrive(store)
        self._events = OperatorEvents(store)
        self._erasure = OperatorErasure(store)

    async def list_deliveries(self, request: Request) -> DeliveryPage:
        return await self._page(_parameters(request, ListParameters))

    async def list_dead_letters(self, request: Request) -> DeliveryPage:
        wanted = _parameters(request, ListParameters)
        if wanted.status:
            raise _bad_parameter("status", "is dead_letter here")
        return await self._page(msgspec.structs.replace(wanted, status=("dead_letter",)))

    async def redrive(self, request: Request) -> RedriveAnswer:
        _parameters(request, NoParameters)
        return await self._redrive.redrive(await _body(request, _REDRIVE))

    async def erase(self, request: Request) -> ErasureReport:
        _parameters(request, NoParameters)
        return await self._erasure.erase(await _body(request, _ERASURE))

    async def list_events(self, request: Request) -> EventPage:
        wanted = _parameters(request, EventParameters)
        with _judging_parameters():
            return await self._events.page(wanted.limit, wanted.after, wanted.type)

    async def _page(self, wanted: ListParameters) -> DeliveryPage:
        query = DeliveryQuery(
            wanted.status,
            wanted.source,
            wanted.delivery_class,
            wanted.template,
            wanted.recipient,
            wanted.rule,
            wanted.since,
            wanted.until,
        )
        with _judging_parameters():
            return await self._queue.page(query, wanted.limit, wanted.cursor)

    async def show_delivery(self, request: Request) -> DeliveryView:
        _parameters(request, NoParameters)
        delivery_id = _id(request, "delivery_id")
        delivery = await self._queue.delivery(delivery_id) if delivery_id else None
        return _found(delivery, NO_SUCH_DELIVERY)

    async def list_attempts(self, request: Request) -> AttemptList:
        _parameters(request, NoParameters)
        delivery_id = _id(request, "delivery_id")
        attempts = await self._queue.attempts(delivery_id) if delivery_id else None
        return AttemptList(_found(attempts, NO_SUCH_DELIVERY))

    async def explain(self, request: Request) -> Explanation:
        _parameters(request, NoParameters)
        delivery_id = _id(request, "delivery_id")
        explanation = await self._explain.explain(delivery_id) if delivery_id else None
        return _found(explanation, NO_SUCH_DELIVERY)

    def changing(self, verb: Verb) -> Callable[[Request], Awaitable[Changed]]:
        """Return the call that does `verb`."""

        async def change(request: Request) -> Changed:
            why = await _why(request)
            return await self._verbs.change(verb, _known_delivery_id(request), why)

        return change

    async def resend(self, request: Request) -> Response:
        why, key = await _why(request), header_key(request.headers.raw)
        made, replayed = await self._verbs.resend(_known_delivery_id(request), why, key=key)
        headers = _REPLAYED if replayed else {}
        return Response(
            _ENCODER.encode(made), status_code=202, headers=headers, media_type="application/json"
        )

    async def list_replicas(self, request: Request) -> ReplicaList:
        _parameters(request, NoParameters)
        return ReplicaList(await self._queue.replicas())

    async def list_malformed(self, request: Request) -> MalformedPage:
        wanted = _parameters(request, MalformedParameters)
        with _judging_parameters():
            return await self._malformed.page(
                wanted.limit, wanted.cursor, code=wanted.code, source=wanted.source
            )

    async def list_suppressions(self, request: Request) -> SuppressionPage:
        wanted = _parameters(request, SuppressionParameters)
        with _judging_parameters():
            return await self._suppressions.page(
                wanted.limit, wanted.cursor, recipient=wanted.recipient, reason=wanted.reason
            )

    async def remove_suppression(self, request: Request) -> Suppression:
        by = _parameters(request, RemovalParameters)
        with _judging_parameters():
            check_line(by.actor, "actor")
            check_line(by.note, "note")
        suppression_id = _id(request, "suppression_id")
        removed = (
            await self._suppressions.remove(suppression_id, actor=by.actor, note=by.note)
            if suppression_id
            else None
        )
        return _found(removed, "no suppression has this id")

    async def flush(self, request: Request) -> FlushAnswer:
        _parameters(request, NoParameters)
        wanted = await _body(request, _FLUSH)
        given = [name for name in ("delivery_id", "domain", "next_hop", "all") if getattr(wanted, name)]
        if len(given) != 1:
            raise CommandError(
                FailureCode.MISSING_FIELD, "", "needs exactly one of: delivery_id, domain, next_hop, all"
            )
        flushed = await self._queue.flush(
            delivery_id=wanted.delivery_id,
            domain=wanted.domain,
            next_hop=wanted.next_hop,
            force=wanted.force,
            why=Why(wanted.reason, wanted.actor),
        )
        return FlushAnswer(flushed)


def _describing(description: bytes) -> Callable[[Request], Awaitable[msgspec.Raw]]:
    async def describe(request: Request) -> msgspec.Raw:
        _parameters(request, NoParameters)
        return msgspec.Raw(description)

    return describe


def _answering(
    call: Callable[[Request], Awaitable[msgspec.Struct | msgspec.Raw]],
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return Response(_ENCODER.encode(await call(request)), media_type="application/json")

    return answer


# -- requests ----------------------------------------------------------------------------------------------------

P = TypeVar("P")


def _parameters(request: Request, kind: type[P]) -> P:
    given: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in _REPEATED:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise _bad_parameter(name, "is given twice")
        else:
            # The decoder's own lax way takes "null" for not given and numbers for instants.
            given[name] = int(value) if name in _NUMBERS and _DIGITS.fullmatch(value) else value
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as fault:
        wrong = field_error(fault)
        raise ProblemError(problem_of(wrong, status=400)) from None


@contextmanager
def _judging_parameters() -> Iterator[None]:
    """Let what the body finds wrong with a value be the fault of the query parameter of that name."""
    try:
        yield
    except CommandError as fault:
        raise _bad_parameter(fault.field, fault.message) from None


def _bad_parameter(name: str, why: str) -> ProblemError:
    return ProblemError(problem_of(CommandError(FailureCode.INVALID_FIELD, name, why), status=400))


def _id(request: Request, name: str) -> UUID | None:
    try:
        return UUID(request.path_params[name])
    except ValueError:
        return None


def _known_delivery_id(request: Request) -> UUID:
    return _found(_id(request, "delivery_id"), NO_SUCH_DELIVERY)


async def _why(request: Request) -> Why:
    _parameters(request, NoParameters)
    return await _body(request, _WHY)


async def _body(request: Request, decoder: "msgspec.json.Decoder[P]") -> P:
    check_content_type(dict(request.headers.raw))
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            detail = f"the body is larger than {MAX_BODY_BYTES} bytes"
            raise ProblemError(make_problem(FailureCode.TOO_LARGE, detail, status=413))
    check_json(body)
    return decode_json(body, decoder)


# -- answers -----------------------------------------------------------------------------------------------------


def _found(read: P | None, why_not: str) -> P:
    if read is None:
        raise ProblemError(make_problem(HttpCode.NOT_FOUND, why_not))
    return read


async def _refuse(_request: Request, fault: Exception) -> Response:
    return _problem_response(problem_of(fault))


async def _refuse_change(_request: Request, fault: Exception) -> Response:
    match fault:
        case NoSuchDeliveryError():
            problem = make_problem(HttpCode.NOT_FOUND, NO_SUCH_DELIVERY)
        case KeyTakenError():
            problem = make_problem(FailureCode.IDEMPOTENCY_CONFLICT, str(fault), field=KEY_HEADER)
        case LiveMailError():
            problem = make_problem(HttpCode.LIVE_MAIL, str(fault))
        case _:
            problem = make_problem(HttpCode.WRONG_STATUS, f"the delivery {fault}")
    return _problem_response(problem)


async def _refuse_route(_request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    if fault.status_code == 405:
        methods = (fault.headers or {}).get("Allow", "")
        problem = make_problem(HttpCode.METHOD_NOT_ALLOWED, f"use one of: {methods}")
        return _problem_response(problem, ((b"allow", methods.encode()),))
    return _problem_response(make_problem(HttpCode.NOT_FOUND, "this path is not part of the API"))


def _problem_response(problem: Problem, headers: Headers = ()) -> Response:
    return Response(
        _ENCODER.encode(problem),
        status_code=problem.status,
        headers={name.decode(): value.decode() for name, value in (*problem.headers, *headers)},
        media_type=MEDIA_TYPE.decode(),
    )
