"""What the OpenAPI documents share: operations, their answers with an example each, refusals, headers.

A document has one `Call` for each route, and says with `Parts` what its calls refer to. What is sent for an example of an answer
is the request's example of the same name, or stands beside it as `x-request`.
"""

import http
from collections.abc import Mapping
from typing import Final

import msgspec

from mailkeep.contracts.examples import KEY, Exchange
from mailkeep.contracts.truth import Schema, one_of
from mailkeep.core.command import MAX_KEY_CHARS, FailureCode
from mailkeep.intake.application import KEY_HEADER
from mailkeep.intake.problems import MEDIA_TYPE, RETRY_AFTER_S, HttpCode, Problem, make_problem

SCHEMAS: Final = "#/components/schemas/"

_JSON: Final = "application/json"
_PROBLEM: Final = MEDIA_TYPE.decode()
_TRACE: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

HEADERS: Final = {
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
    403: {"WWW-Authenticate": "WwwAuthenticate"},
    405: {"Allow": "Allow"},
    429: {"Retry-After": "RetryAfter"},
    503: {"Retry-After": "RetryAfter"},
}


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One operation; `takes` is the schema of its body, `refused` names the refusals that it may give."""

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


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What the calls of one document refer to: refusals by name, examples of them, examples of what is taken, by operation.

    `links` are operations to which the id of a taken delivery leads.
    """

    refused: Mapping[str, Refused]
    refusals: Mapping[str, tuple[Exchange, ...]]
    taken: Mapping[str, tuple[Exchange, ...]]
    links: tuple[str, ...] = ()


def key_header(max_chars: int = MAX_KEY_CHARS, *, required: bool = False) -> Schema:
    """Return the parameter that is the idempotency key."""
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


TRACEPARENT: Final[Schema] = {
    "name": "traceparent",
    "in": "header",
    "description": "W3C Trace Context; kept with the delivery. One that is malformed is ignored.",
    "schema": {"type": "string"},
    "example": _TRACE,
}


def shape_of(kind: type) -> Schema:
    """Return a reference to the schema of `kind`."""
    return {"$ref": f"{SCHEMAS}{kind.__name__}"}


def paths_of(calls: Mapping[str, Call], parts: Parts) -> dict[str, Schema]:
    """Return the paths of a document."""
    paths: dict[str, Schema] = {}
    for name, call in calls.items():
        paths.setdefault(call.path, {})[call.method] = _operation(name, call, parts)
    return paths


def responses_of(parts: Parts) -> dict[str, Schema]:
    """Return the refusals of a document."""
    return {name: _refusal(refused, parts.refusals[name]) for name, refused in parts.refused.items()}


def _operation(name: str, call: Call, parts: Parts) -> Schema:
    exchanges = parts.taken.get(name, ())
    operation: Schema = {"operationId": name, "tags": [call.tag], "summary": call.summary}
    if call.description:
        operation["description"] = call.description
    if call.parameters:
        operation["parameters"] = list(call.parameters)
    if call.takes:
        bodies = {each.name: {"summary": each.summary, "value": each.body} for each in exchanges}
        content = {"schema": {"$ref": f"{SCHEMAS}{call.takes}"}, "examples": bodies}
        operation["requestBody"] = {"required": True, "content": {_JSON: content}}
    responses = {str(call.status): _acceptance(call, exchanges, parts.links)}
    responses |= {
        str(parts.refused[refused].status): {"$ref": f"#/components/responses/{refused}"}
        for refused in sorted(call.refused, key=lambda refused: parts.refused[refused].status)
    }
    return {**operation, "responses": responses}


def _acceptance(call: Call, exchanges: tuple[Exchange, ...], links: tuple[str, ...]) -> Schema:
    answers = {each.name: _example(each, with_body=False) for each in exchanges}
    content = {"schema": call.gives} | ({"examples": answers} if answers else {})
    answer: Schema = {"description": http.HTTPStatus(call.status).phrase, "content": {_JSON: content}}
    if call.replays:
        answer["headers"] = {"Idempotent-Replayed": {"$ref": "#/components/headers/IdempotentReplayed"}}
        if links:
            answer["links"] = {
                link: {"operationId": link, "parameters": {"delivery_id": "$response.body#/delivery_id"}}
                for link in links
            }
    return answer


def _refusal(refused: Refused, exchanges: tuple[Exchange, ...]) -> Schema:
    titles = dict.fromkeys(make_problem(code, "").title for code in refused.codes)
    codes = {"properties": {"status": {"const": refused.status}, "code": one_of(refused.codes)}}
    answers = {each.name: _example(each, with_body=True) for each in exchanges}
    content = {"schema": {"allOf": [shape_of(Problem), codes]}, "examples": answers}
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
