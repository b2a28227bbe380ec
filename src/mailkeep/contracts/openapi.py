"""The OpenAPI 3.1 document of the internal listener: `GET /openapi.json`, and as a file `api/internal-openapi.yaml`.

One `Call` for each route, and an example for each answer. A route, a method or a problem code that is missing here fails a test.
"""

from functools import cache
from typing import Final

import msgspec

from mailkeep.contracts.examples import (
    DELIVERY_ID,
    REFUSED,
    SUPPRESSION_ID,
    SUPPRESSIONS,
    TAKEN,
)
from mailkeep.contracts.operations import (
    HEADERS,
    SCHEMAS,
    TRACEPARENT,
    Call,
    Parts,
    Refused,
    key_header,
    paths_of,
    responses_of,
    shape_of,
)
from mailkeep.contracts.schemas import not_null, schemas
from mailkeep.contracts.truth import COMMAND, Schema
from mailkeep.core.command import FailureCode, LoginCodeRequest
from mailkeep.intake.application import DeliveryAnswer
from mailkeep.intake.http import (
    BATCH,
    DELIVERIES,
    LOGIN_CODES,
    MAX_BATCH_KEY_CHARS,
    BatchAnswer,
    BatchRequest,
    LoginCodeAnswer,
)
from mailkeep.intake.problems import HttpCode, Problem
from mailkeep.operator.api import (
    DESCRIPTION,
    ROOT,
    AttemptList,
    EventParameters,
    FlushAnswer,
    FlushRequest,
    ListParameters,
    MalformedParameters,
    RemovalParameters,
    ReplicaList,
    SuppressionParameters,
)
from mailkeep.operator.changes import Changed, Why
from mailkeep.operator.erase import ErasureReport, ErasureRequest
from mailkeep.operator.events import EventPage
from mailkeep.operator.explain import Explanation
from mailkeep.operator.malformed import MalformedPage
from mailkeep.operator.queue import DeliveryPage, DeliveryView
from mailkeep.operator.redrive import RedriveAnswer, RedriveRequest
from mailkeep.operator.suppressions import SuppressionPage
from mailkeep.store.changes import Verb
from mailkeep.store.suppressions import Suppression

API_VERSION: Final = "1.0.0"
"""Of what the document says, by semantic versioning; the `v1` of the paths is its first number."""

_INFO: Final = {
    "title": "Mailkeep, internal listener",
    "version": API_VERSION,
    "summary": "Takes mail, says so when it is durable, and shows what became of it.",
    "description": """\
At `MAIL_INTERNAL_HTTP_ADDR`. Bodies are UTF-8 JSON (RFC 8259) as `application/json`, not compressed; a member that is not known
or stands twice is refused, and an integer is written without fraction or exponent. A query parameter that is not known or
stands twice (but for `status` and `type`) is refused.

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
# -- parameters --------------------------------------------------------------------------------------------------


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
    "LiveMail": Refused(409, (_H.LIVE_MAIL,)),
    "Misdirected": Refused(421, (_H.MISDIRECTED,)),
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
    "RefusedRedrive": Refused(422, (_F.MISSING_FIELD, _F.UNKNOWN_FIELD, _F.INVALID_FIELD)),
    "RefusedFlush": Refused(422, (_F.MISSING_FIELD, _F.UNKNOWN_FIELD, _F.INVALID_FIELD)),
    "RefusedErasure": Refused(
        422, (_F.MISSING_FIELD, _F.UNKNOWN_FIELD, _F.INVALID_FIELD, _F.INVALID_ADDRESS)
    ),
    "InternalError": Refused(500, (_H.INTERNAL_ERROR,)),
    "Unavailable": Refused(503, (_H.UNAVAILABLE, _H.OVERLOADED)),
}
_READING: Final = ("BadQuery", "Unauthorized", "Misdirected", "InternalError", "Unavailable")
_WRITING: Final = (
    "BadRequest",
    "Unauthorized",
    "TooLarge",
    "UnsupportedMediaType",
    "Misdirected",
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


CALLS: Final = {
    "takeLoginCode": Call(
        method="post",
        path=LOGIN_CODES,
        tag="intake",
        summary="Take a login code",
        description="`sent`: it is durable and will be sent. `suppressed`: it is kept, and not sent: stub mode, or the recipient "
        "is on the suppression list.",
        parameters=(key_header(required=True), TRACEPARENT),
        takes=LoginCodeRequest.__name__,
        gives=shape_of(LoginCodeAnswer),
        replays=True,
        refused=(*_WRITING, "RefusedLoginCode"),
    ),
    "takeDelivery": Call(
        method="post",
        path=DELIVERIES,
        tag="intake",
        summary="Take a command",
        description="Answered when it is durable. Without a key, in the header or as a member, each call is a delivery.",
        parameters=(key_header(), TRACEPARENT),
        takes=COMMAND,
        status=202,
        gives=shape_of(DeliveryAnswer),
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
        parameters=(key_header(MAX_BATCH_KEY_CHARS), TRACEPARENT),
        takes=BatchRequest.__name__,
        gives=shape_of(BatchAnswer),
        refused=(*_WRITING, "RefusedBatch"),
    ),
    "listDeliveries": Call(
        method="get",
        path=DELIVERIES,
        tag="queue",
        summary="List deliveries",
        description="Newest first. A page may be short, even empty: the end is where `cursor` is null.",
        parameters=_query(ListParameters),
        gives=shape_of(DeliveryPage),
        refused=_READING,
    ),
    "showDelivery": Call(
        method="get",
        path=f"{DELIVERIES}/{{delivery_id}}",
        tag="queue",
        summary="Show a delivery",
        parameters=(_DELIVERY_ID,),
        gives=shape_of(DeliveryView),
        refused=(*_READING, "NotFound"),
    ),
    "listAttempts": Call(
        method="get",
        path=f"{DELIVERIES}/{{delivery_id}}/attempts",
        tag="queue",
        summary="Show what was tried",
        parameters=(_DELIVERY_ID,),
        gives=shape_of(AttemptList),
        refused=(*_READING, "NotFound"),
    ),
    "explainDelivery": Call(
        method="get",
        path=f"{DELIVERIES}/{{delivery_id}}/explain",
        tag="queue",
        summary="Explain where it stands",
        description="Why it is not sent yet, or how it ended; what happens next, and when.",
        parameters=(_DELIVERY_ID,),
        gives=shape_of(Explanation),
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
            gives=shape_of(Changed),
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
        parameters=(_DELIVERY_ID, key_header()),
        takes=Why.__name__,
        status=202,
        gives=shape_of(Changed),
        replays=True,
        refused=(*_WRITING, "NotFound", "WrongStatus", "RefusedResend"),
    ),
    "listDeadLetters": Call(
        method="get",
        path=f"{ROOT}/dead-letters",
        tag="queue",
        summary="List dead letters",
        parameters=_query(ListParameters, "status"),
        gives=shape_of(DeliveryPage),
        refused=_READING,
    ),
    "redriveDeadLetters": Call(
        method="post",
        path=f"{ROOT}/dead-letters/redrive",
        tag="queue",
        summary="Send dead letters once more",
        description="Each becomes a delivery of source `operator_resend`, due one after the other at the rate. What was resent "
        "before is left out unless it is forced, so that the call may be repeated; `cursor` goes on after it.",
        takes=RedriveRequest.__name__,
        gives=shape_of(RedriveAnswer),
        refused=(*_WRITING, "RefusedRedrive"),
    ),
    "erase": Call(
        method="post",
        path=f"{ROOT}/erasures",
        tag="erasure",
        summary="Erase what is stored of an address",
        description="Of a recipient or a sender, on that person's request. What happened stays, without to whom. Recorded with who "
        "did it and why. `left` is what was not at rest: erase it by another call. May be repeated.",
        takes=ErasureRequest.__name__,
        gives=shape_of(ErasureReport),
        refused=(*_WRITING, "LiveMail", "RefusedErasure"),
    ),
    "listEvents": Call(
        method="get",
        path=f"{ROOT}/events",
        tag="queue",
        summary="Read what became of deliveries",
        description="From the oldest event on, or after a cursor; none is ever missed or told in between later. A page may be "
        "short, even empty: ask again, with its `after`. Events live as long as their deliveries. Webhooks are told the same.",
        parameters=_query(EventParameters),
        gives=shape_of(EventPage),
        refused=_READING,
    ),
    "listMalformedCommands": Call(
        method="get",
        path=f"{ROOT}/malformed-commands",
        tag="queue",
        summary="List commands of stream and SQL that could not be taken",
        parameters=_query(MalformedParameters),
        gives=shape_of(MalformedPage),
        refused=_READING,
    ),
    "listReplicas": Call(
        method="get",
        path=f"{ROOT}/replicas",
        tag="queue",
        summary="List replicas",
        gives=shape_of(ReplicaList),
        refused=_READING,
    ),
    "listSuppressions": Call(
        method="get",
        path=SUPPRESSIONS,
        tag="suppressions",
        summary="List suppressed addresses",
        description="Those in force, newest first; the end is where `cursor` is null.",
        parameters=_query(SuppressionParameters),
        gives=shape_of(SuppressionPage),
        refused=_READING,
    ),
    "removeSuppression": Call(
        method="delete",
        path=f"{SUPPRESSIONS}/{{suppression_id}}",
        tag="suppressions",
        summary="Let an address get mail again",
        description="Answers what it was. Recorded with who did it and why.",
        parameters=(_SUPPRESSION_ID, *_query(RemovalParameters)),
        gives=shape_of(Suppression),
        refused=(*_READING, "NotFound"),
    ),
    "flushQueue": Call(
        method="post",
        path=f"{ROOT}/queue/flush",
        tag="queue",
        summary="Make due now what waits for a later attempt",
        description="On every replica. Mail that was never tried keeps its time unless it is named by its id.",
        takes=FlushRequest.__name__,
        gives=shape_of(FlushAnswer),
        refused=(*_WRITING, "RefusedFlush"),
    ),
    "showDescription": Call(
        method="get",
        path=DESCRIPTION,
        tag="description",
        summary="This document",
        gives={"type": "object", "required": ["openapi", "paths"]},
        refused=("BadQuery", "Unauthorized", "Misdirected", "InternalError"),
    ),
}
_PARTS: Final = Parts(refused=_REFUSED, refusals=REFUSED, taken=TAKEN, links=("showDelivery", "listAttempts"))
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
    RedriveRequest,
    RedriveAnswer,
    ErasureRequest,
    ErasureReport,
    EventPage,
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
    return {
        "openapi": "3.1.0",
        "info": _INFO,
        "servers": [{"url": "http://127.0.0.1:8080", "description": "Default of `MAIL_INTERNAL_HTTP_ADDR`."}],
        "security": [{"token": []}, {}],
        "tags": [
            {"name": "intake", "description": "What is answered 2xx is durable."},
            {"name": "queue", "description": "What operators read and do. Addresses come masked."},
            {"name": "suppressions", "description": "Addresses that get no mail, in clear."},
            {"name": "erasure", "description": "A person's right to be forgotten (GDPR article 17)."},
            {"name": "description"},
        ],
        "paths": paths_of(CALLS, _PARTS),
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Where `MAIL_INTERNAL_HTTP_TOKENS` is set, every request needs one of them.",
                }
            },
            "headers": HEADERS,
            "responses": responses_of(_PARTS),
            "schemas": schemas(_SHAPES, SCHEMAS),
        },
    }
