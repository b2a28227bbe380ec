"""The OpenAPI 3.1 document of the internal listener: `GET /openapi.json`, and as a file `api/internal-openapi.yaml`.

One `Call` for each route. Each answer has an example: what is sent for it is the request's example of the same name, or
stands beside it as `x-request`. A route, a method or a problem code that is missing here fails a test.
"""

import http
from functools import cache
from typing import Final

import msgspec

from mailkeep.contracts.examples import (
    DELIVERY_ID,
    KEY,
    REFUSED,
    SUPPRESSION_ID,
    SUPPRESSIONS,
    TAKEN,
    Exchange,
)
from mailkeep.contracts.schemas import not_null, schemas
from mailkeep.contracts.truth import COMMAND, Schema, one_of
from mailkeep.core.command import MAX_KEY_CHARS, FailureCode, LoginCodeRequest
from mailkeep.intake.application import KEY_HEADER, DeliveryAnswer
from mailkeep.intake.http import (
    BATCH,
    DELIVERIES,
    LOGIN_CODES,
    MAX_BATCH_KEY_CHARS,
    BatchAnswer,
    BatchRequest,
    LoginCodeAnswer,
)
from mailkeep.intake.problems import MEDIA_TYPE, RETRY_AFTER_S, HttpCode, Problem, make_problem
from mailkeep.operator.api import (
    DESCRIPTION,
    ROOT,
    AttemptList,
    FlushAnswer,
    FlushRequest,
    ListParameters,
    MalformedParameters,
    RemovalParameters,
    ReplicaList,
    SuppressionParameters,
)
from mailkeep.operator.changes import Changed, Why
from mailkeep.operator.explain import Explanation
from mailkeep.operator.malformed import MalformedPage
from mailkeep.operator.queue import DeliveryPage, DeliveryView
from mailkeep.operator.suppressions import SuppressionPage
from mailkeep.store.changes import Verb
from mailkeep.store.suppressions import Suppression

API_VERSION: Final = "1.0.0"
"""Of what the document says, by semantic versioning; the `v1` of the paths is its first number."""
SCHEMAS: Final = "#/components/schemas/"

_JSON: Final = "application/json"
_PROBLEM: Final = MEDIA_TYPE.decode()
_TRACE: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

_INFO: Final = {
    "title": "Mailkeep, internal listener",
    "version": API_VERSION,
    "summary": "Takes mail, says so when it is durable, and shows what became of it.",
    "description": """\
At `MAIL_INTERNAL_HTTP_ADDR`. Bodies are UTF-8 JSON (RFC 8259) as `application/json`, not compressed; a member that is not known
or stands twice is refused, and an integer is written without fraction or exponent. A query parameter that is not known or
stands twice (but for `status`) is refused.

What is refused is answered with a problem document (RFC 9457), which repeats no value of the request; its `type` and `code` are
stable. Any path answers 404 where there is nothing, and 405 with `Allow` to methods that are not described here; `GET`
stands for `HEAD` too.

A request under an `Idempotency-Key` may be repeated: the same command gets the first answer again, with
`Idempotent-Replayed: true`; another command is refused. What is refused reserves nothing.

Each example of an answer is executed as a test against the running service. What was sent for it is the request's
example of the same name, or stands in `x-request`. Ids, instants and measures differ from run to run.
""",
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}
_HEADERS: Final = {
    "IdempotentReplayed": {
        "description": "Stands only on an answer that was given before, under the same key.",
        "schema": {"const": "true"},
    },
    "RetryAfter": {
        "description": "Seconds to wait before the request is repeated.",
        "schema": {"type": "integer"},
        "example": RETRY_AFTER_S,
    },
    "WwwAuthenticate": {"schema": {"const": 'Bearer realm="mailkeep"'}},
    "Allow": {"schema": {"type": "string"}, "example": "GET, HEAD"},
}
_HEADERS_OF: Final = {
    401: {"WWW-Authenticate": "WwwAuthenticate"},
    405: {"Allow": "Allow"},
    503: {"Retry-After": "RetryAfter"},
}


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One operation; `takes` is the schema of its body, `refused` names the answers of `_REFUSED` that it may give."""

    method: str
    path: str
    tag: str
    summary: str
    description: str = ""
    parameters: tuple[Schema, ...] = ()
    takes: str = ""
    status: int = 200
    gives: Schema
    replays: bool = False
    refused: tuple[str, ...]


class Refused(msgspec.Struct, frozen=True):
    """An answer that takes nothing: which codes it may have under its status."""

    status: int
    codes: tuple[FailureCode | HttpCode, ...]


# -- parameters --------------------------------------------------------------------------------------------------


def _key_header(max_chars: int = MAX_KEY_CHARS, *, required: bool = False) -> Schema:
    bare = rf"[\x21\x23-\x7e][\x21-\x7e]{{0,{max_chars - 1}}}"
    quoted = rf'"(?:[\x21\x23-\x5b\x5d-\x7e]|\\["\\]){{1,{max_chars}}}"'
    return {
        "name": KEY_HEADER,
        "in": "header",
        "required": required,
        "description": f"1 to {max_chars} visible ASCII characters, bare or as one quoted string.",
        "schema": {"type": "string", "pattern": f"^(?:{bare}|{quoted})$"},
        "example": KEY,
    }


_TRACEPARENT: Final[Schema] = {
    "name": "traceparent",
    "in": "header",
    "description": "W3C Trace Context; kept with the delivery. One that is malformed is ignored.",
    "schema": {"type": "string"},
    "example": _TRACE,
}
_DELIVERY_ID: Final[Schema] = {
    "name": "delivery_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "format": "uuid"},
    "example": DELIVERY_ID,
}


_SUPPRESSION_ID: Final[Schema] = {
    "name": "suppression_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "format": "uuid"},
    "example": SUPPRESSION_ID,
}


def _query(kind: type[msgspec.Struct], *without: str) -> tuple[Schema, ...]:
    """Return the query parameters that are the members of `kind`."""
    members = schemas([kind], SCHEMAS)[kind.__name__]["properties"]
    return tuple(_query_parameter(name, member) for name, member in members.items() if name not in without)


def _query_parameter(name: str, member: Schema) -> Schema:
    schema = not_null(member)
    description = {"description": schema.pop("description")} if "description" in schema else {}
    return {"name": name, "in": "query", **description, "schema": schema}


# -- the operations ----------------------------------------------------------------------------------------------

_F, _H = FailureCode, HttpCode
_REFUSED: Final = {
    "BadQuery": Refused(400, (_F.UNKNOWN_FIELD, _F.INVALID_FIELD)),
    "BadRequest": Refused(400, (_F.INVALID_JSON, _F.MISSING_FIELD, _F.INVALID_FIELD)),
    "Unauthorized": Refused(401, (_H.UNAUTHORIZED,)),
    "NotFound": Refused(404, (_H.NOT_FOUND,)),
    "WrongStatus": Refused(409, (_H.WRONG_STATUS,)),
    "MethodNotAllowed": Refused(405, (_H.METHOD_NOT_ALLOWED,)),
    "TooLarge": Refused(413, (_F.TOO_LARGE,)),
    "UnsupportedMediaType": Refused(415, (_H.UNSUPPORTED_MEDIA_TYPE,)),
    "RefusedCommand": Refused(422, tuple(code for code in _F if code is not _F.INVALID_JSON)),
    "RefusedLoginCode": Refused(
        422,
        (
            _F.MISSING_FIELD,
            _F.UNKNOWN_FIELD,
            _F.INVALID_FIELD,
            _F.INVALID_ADDRESS,
            _F.INVALID_LOCALE,
            _F.UNKNOWN_TEMPLATE,
            _F.MISSING_VARIABLE,
            _F.TOO_LARGE,
            _F.IDEMPOTENCY_CONFLICT,
            _F.RESERVED_DOMAIN,
        ),
    ),
    "RefusedBatch": Refused(422, (_F.MISSING_FIELD, _F.UNKNOWN_FIELD, _F.INVALID_FIELD, _F.TOO_LARGE)),
    "RefusedChange": Refused(422, (_F.MISSING_FIELD, _F.UNKNOWN_FIELD, _F.INVALID_FIELD)),
    "RefusedResend": Refused(
        422, (_F.MISSING_FIELD, _F.UNKNOWN_FIELD, _F.INVALID_FIELD, _F.IDEMPOTENCY_CONFLICT)
    ),
    "RefusedFlush": Refused(422, (_F.MISSING_FIELD, _F.UNKNOWN_FIELD, _F.INVALID_FIELD)),
    "InternalError": Refused(500, (_H.INTERNAL_ERROR,)),
    "Unavailable": Refused(503, (_H.UNAVAILABLE, _H.OVERLOADED)),
}
_READING: Final = ("BadQuery", "Unauthorized", "InternalError", "Unavailable")
_WRITING: Final = (
    "BadRequest",
    "Unauthorized",
    "TooLarge",
    "UnsupportedMediaType",
    "InternalError",
    "Unavailable",
)


_CHANGES: Final = {
    Verb.HOLD: ("Keep it from being sent", "For a delivery that waits, until it is released."),
    Verb.RELEASE: (
        "Let it go on",
        "A held delivery, due now. One under `at_most_once` that may have been delivered is confirmed, cancelled or resent.",
    ),
    Verb.CANCEL: ("Never send it", "For a delivery that waits or is held."),
    Verb.CONFIRM: ("It was delivered", "A held delivery, as the next hop's own log shows."),
    Verb.DELETE: (
        "Erase its content now",
        "What waits or is held is cancelled by it; what has ended stays so. Its states and attempts remain until retention.",
    ),
}


def _is(kind: type) -> Schema:
    return {"$ref": f"{SCHEMAS}{kind.__name__}"}


CALLS: Final = {
    "takeLoginCode": Call(
        method="post",
        path=LOGIN_CODES,
        tag="intake",
        summary="Take a login code",
        description="`sent`: it is durable and will be sent. `suppressed`: it is kept, and not sent: stub mode, or the recipient "
        "is on the suppression list.",
        parameters=(_key_header(required=True), _TRACEPARENT),
        takes=LoginCodeRequest.__name__,
        gives=_is(LoginCodeAnswer),
        replays=True,
        refused=(*_WRITING, "RefusedLoginCode"),
    ),
    "takeDelivery": Call(
        method="post",
        path=DELIVERIES,
        tag="intake",
        summary="Take a command",
        description="Answered when it is durable. Without a key, in the header or as a member, each call is a delivery.",
        parameters=(_key_header(), _TRACEPARENT),
        takes=COMMAND,
        status=202,
        gives=_is(DeliveryAnswer),
        replays=True,
        refused=(*_WRITING, "RefusedCommand"),
    ),
    "takeBatch": Call(
        method="post",
        path=BATCH,
        tag="intake",
        summary="Take commands, each by itself",
        description="One answer for each, in order, with the status of the single call. A key in the header gives the command "
        "at index *i*, if it has none of its own, the key `<key>#<i>`. One that can't be taken does not stop the others.",
        parameters=(_key_header(MAX_BATCH_KEY_CHARS), _TRACEPARENT),
        takes=BatchRequest.__name__,
        gives=_is(BatchAnswer),
        refused=(*_WRITING, "RefusedBatch"),
    ),
    "listDeliveries": Call(
        method="get",
        path=DELIVERIES,
        tag="queue",
        summary="List deliveries",
        description="Newest first. A page may be short, even empty: the end is where `cursor` is null.",
        parameters=_query(ListParameters),
        gives=_is(DeliveryPage),
        refused=_READING,
    ),
    "showDelivery": Call(
        method="get",
        path=f"{DELIVERIES}/{{delivery_id}}",
        tag="queue",
        summary="Show a delivery",
        parameters=(_DELIVERY_ID,),
        gives=_is(DeliveryView),
        refused=(*_READING, "NotFound"),
    ),
    "listAttempts": Call(
        method="get",
        path=f"{DELIVERIES}/{{delivery_id}}/attempts",
        tag="queue",
        summary="Show what was tried",
        parameters=(_DELIVERY_ID,),
        gives=_is(AttemptList),
        refused=(*_READING, "NotFound"),
    ),
    "explainDelivery": Call(
        method="get",
        path=f"{DELIVERIES}/{{delivery_id}}/explain",
        tag="queue",
        summary="Explain where it stands",
        description="Why it is not sent yet, or how it ended; what happens next, and when.",
        parameters=(_DELIVERY_ID,),
        gives=_is(Explanation),
        refused=(*_READING, "NotFound"),
    ),
    **{
        f"{verb}Delivery": Call(
            method="post",
            path=f"{DELIVERIES}/{{delivery_id}}/{verb}",
            tag="queue",
            summary=summary,
            description=description,
            parameters=(_DELIVERY_ID,),
            takes=Why.__name__,
            gives=_is(Changed),
            refused=(*_WRITING, "NotFound", "WrongStatus", "RefusedChange"),
        )
        for verb, (summary, description) in _CHANGES.items()
    },
    "resendDelivery": Call(
        method="post",
        path=f"{DELIVERIES}/{{delivery_id}}/resend",
        tag="queue",
        summary="Send its content once more",
        description="A new delivery of what has ended or is held, for those of its recipients who did not get it, or all if all "
        "did. Bytes and Message-ID stay, so that a receiver can tell. A held one is cancelled by it.",
        parameters=(_DELIVERY_ID, _key_header()),
        takes=Why.__name__,
        status=202,
        gives=_is(Changed),
        replays=True,
        refused=(*_WRITING, "NotFound", "WrongStatus", "RefusedResend"),
    ),
    "listDeadLetters": Call(
        method="get",
        path=f"{ROOT}/dead-letters",
        tag="queue",
        summary="List dead letters",
        parameters=_query(ListParameters, "status"),
        gives=_is(DeliveryPage),
        refused=_READING,
    ),
    "listMalformedCommands": Call(
        method="get",
        path=f"{ROOT}/malformed-commands",
        tag="queue",
        summary="List commands of stream and SQL that could not be taken",
        parameters=_query(MalformedParameters),
        gives=_is(MalformedPage),
        refused=_READING,
    ),
    "listReplicas": Call(
        method="get",
        path=f"{ROOT}/replicas",
        tag="queue",
        summary="List replicas",
        gives=_is(ReplicaList),
        refused=_READING,
    ),
    "listSuppressions": Call(
        method="get",
        path=SUPPRESSIONS,
        tag="suppressions",
        summary="List suppressed addresses",
        description="Those in force, newest first; the end is where `cursor` is null.",
        parameters=_query(SuppressionParameters),
        gives=_is(SuppressionPage),
        refused=_READING,
    ),
    "removeSuppression": Call(
        method="delete",
        path=f"{SUPPRESSIONS}/{{suppression_id}}",
        tag="suppressions",
        summary="Let an address get mail again",
        description="Answers what it was. Recorded with who did it and why.",
        parameters=(_SUPPRESSION_ID, *_query(RemovalParameters)),
        gives=_is(Suppression),
        refused=(*_READING, "NotFound"),
    ),
    "flushQueue": Call(
        method="post",
        path=f"{ROOT}/queue/flush",
        tag="queue",
        summary="Make due now what waits for a later attempt",
        description="On every replica. Mail that was never tried keeps its time unless it is named by its id.",
        takes=FlushRequest.__name__,
        gives=_is(FlushAnswer),
        refused=(*_WRITING, "RefusedFlush"),
    ),
    "showDescription": Call(
        method="get",
        path=DESCRIPTION,
        tag="description",
        summary="This document",
        gives={"type": "object", "required": ["openapi", "paths"]},
        refused=("BadQuery", "Unauthorized", "InternalError"),
    ),
}
_SHAPES: Final = (
    LoginCodeRequest,
    LoginCodeAnswer,
    DeliveryAnswer,
    BatchRequest,
    BatchAnswer,
    DeliveryPage,
    AttemptList,
    Explanation,
    MalformedPage,
    ReplicaList,
    Why,
    Changed,
    FlushRequest,
    FlushAnswer,
    SuppressionPage,
    Problem,
)


# -- the document ------------------------------------------------------------------------------------------------


@cache
def openapi_json() -> bytes:
    """Return the document as JSON."""
    return msgspec.json.encode(openapi())


def openapi() -> Schema:
    """Return the document."""
    paths: dict[str, Schema] = {}
    for name, call in CALLS.items():
        paths.setdefault(call.path, {})[call.method] = _operation(name, call)
    return {
        "openapi": "3.1.0",
        "info": _INFO,
        "servers": [{"url": "http://127.0.0.1:8080", "description": "Default of `MAIL_INTERNAL_HTTP_ADDR`."}],
        "security": [{"token": []}, {}],
        "tags": [
            {"name": "intake", "description": "What is answered 2xx is durable."},
            {"name": "queue", "description": "What operators read and do. Addresses come masked."},
            {"name": "suppressions", "description": "Addresses that get no mail, in clear."},
            {"name": "description"},
        ],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Where `MAIL_INTERNAL_HTTP_TOKENS` is set, every request needs one of them.",
                }
            },
            "headers": _HEADERS,
            "responses": {name: _refusal(name, refused) for name, refused in _REFUSED.items()},
            "schemas": schemas(_SHAPES, SCHEMAS),
        },
    }


def _operation(name: str, call: Call) -> Schema:
    exchanges = TAKEN.get(name, ())
    operation: Schema = {"operationId": name, "tags": [call.tag], "summary": call.summary}
    if call.description:
        operation["description"] = call.description
    if call.parameters:
        operation["parameters"] = list(call.parameters)
    if call.takes:
        bodies = {each.name: {"summary": each.summary, "value": each.body} for each in exchanges}
        content = {"schema": {"$ref": f"{SCHEMAS}{call.takes}"}, "examples": bodies}
        operation["requestBody"] = {"required": True, "content": {_JSON: content}}
    responses = {str(call.status): _acceptance(call, exchanges)}
    responses |= {
        str(_REFUSED[refused].status): {"$ref": f"#/components/responses/{refused}"}
        for refused in sorted(call.refused, key=lambda refused: _REFUSED[refused].status)
    }
    return {**operation, "responses": responses}


def _acceptance(call: Call, exchanges: tuple[Exchange, ...]) -> Schema:
    answers = {each.name: _example(each, with_body=False) for each in exchanges}
    content = {"schema": call.gives} | ({"examples": answers} if answers else {})
    answer: Schema = {"description": http.HTTPStatus(call.status).phrase, "content": {_JSON: content}}
    if call.replays:
        answer["headers"] = {"Idempotent-Replayed": {"$ref": "#/components/headers/IdempotentReplayed"}}
        answer["links"] = {
            link: {"operationId": link, "parameters": {"delivery_id": "$response.body#/delivery_id"}}
            for link in ("showDelivery", "listAttempts")
        }
    return answer


def _refusal(name: str, refused: Refused) -> Schema:
    titles = dict.fromkeys(make_problem(code, "").title for code in refused.codes)
    codes = {"properties": {"status": {"const": refused.status}, "code": one_of(refused.codes)}}
    answers = {each.name: _example(each, with_body=True) for each in REFUSED[name]}
    content = {"schema": {"allOf": [_is(Problem), codes]}, "examples": answers}
    answer: Schema = {"description": ". ".join(titles) + ".", "content": {_PROBLEM: content}}
    if refused.status in _HEADERS_OF:
        answer["headers"] = {
            header: {"$ref": f"#/components/headers/{component}"}
            for header, component in _HEADERS_OF[refused.status].items()
        }
    return answer


def _example(exchange: Exchange, *, with_body: bool) -> Schema:
    """Return the example of an answer, and beside it what of its request does not stand elsewhere."""
    request = msgspec.to_builtins(exchange)
    example = {"summary": request.pop("summary"), "value": request.pop("answer")}
    del request["name"]
    if not with_body:
        request.pop("body", None)
    return example | ({"x-request": request} if request else {})
