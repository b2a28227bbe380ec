"""The OpenAPI 3.1 document of the public send listener: the file `api/send-openapi.yaml`.

Each example of an answer is executed as a test: the tokens in it stand for keys that the test makes. Ids differ from run to run.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from mailkeep.contracts.examples import DELIVERY_ID, Exchange
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
from mailkeep.contracts.schemas import schemas
from mailkeep.contracts.truth import Schema
from mailkeep.core.command import FailureCode
from mailkeep.core.send_request import SendRequest
from mailkeep.intake.application import KEY_HEADER, DeliveryAnswer
from mailkeep.intake.problems import HttpCode, Problem, make_problem, problem_of
from mailkeep.intake.send import SEND
from mailkeep.store.errors import StoreUnavailableError

API_VERSION: Final = "1.0.0"
"""Of what the document says, by semantic versioning."""

_INFO: Final = {
    "title": "Mailkeep, send listener",
    "version": API_VERSION,
    "summary": "Takes mail of people's programs, each with a token of its own.",
    "description": """\
At `MAIL_SEND_HTTP_ADDR`, behind whatever ends TLS. Bodies are UTF-8 JSON (RFC 8259) as `application/json`, not compressed; a member
that is not known or stands twice is refused.

The token is an API key (`mailkeep keys create`), or an access token of the issuer in `MAIL_SEND_OIDC_ISSUER`. It sends only from
addresses that it owns, and to `MAIL_SEND_RATE` recipients a minute. A mail that can't be delivered comes back to `from` as a bounce.

What is refused is answered with a problem document (RFC 9457), which repeats no value of the request; its `type` and `code` are
stable. A request under an `Idempotency-Key` may be repeated: the same mail gets the first answer again, with
`Idempotent-Replayed: true`; another mail is refused. What is refused reserves nothing.
""",
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}
_F, _H = FailureCode, HttpCode
_REFUSED: Final = {
    "BadRequest": Refused(400, (_F.INVALID_JSON, _F.INVALID_FIELD)),
    "Unauthorized": Refused(401, (_H.UNAUTHORIZED,)),
    "Forbidden": Refused(403, (_H.FORBIDDEN,)),
    "NotFound": Refused(404, (_H.NOT_FOUND,)),
    "MethodNotAllowed": Refused(405, (_H.METHOD_NOT_ALLOWED,)),
    "TooLarge": Refused(413, (_F.TOO_LARGE,)),
    "UnsupportedMediaType": Refused(415, (_H.UNSUPPORTED_MEDIA_TYPE,)),
    "RefusedMail": Refused(
        422,
        (
            _F.MISSING_FIELD,
            _F.UNKNOWN_FIELD,
            _F.INVALID_FIELD,
            _F.INVALID_ADDRESS,
            _F.TOO_LARGE,
            _F.IDEMPOTENCY_CONFLICT,
            _F.RESERVED_DOMAIN,
        ),
    ),
    "RateLimited": Refused(429, (_H.RATE_LIMITED,)),
    "InternalError": Refused(500, (_H.INTERNAL_ERROR,)),
    "Unavailable": Refused(503, (_H.UNAVAILABLE, _H.OVERLOADED, _H.ISSUER_UNAVAILABLE)),
}
_KEY: Final = "invoice-10042"
_MAIL: Final[dict[str, Any]] = {
    "from": "Billing <billing@example.org>",
    "to": ["Ann <ann@example.net>"],
    "subject": "Your invoice A-10042",
    "text": "Thank you. The invoice follows by post.\n",
}


def _refused(
    summary: str,
    code: FailureCode | HttpCode,
    detail: str,
    *,
    field: str = "",
    status: int | None = None,
    method: str = "POST",
    path: str = SEND,
    **request: Any,  # noqa: ANN401 - the members of Exchange
) -> Exchange:
    problem = make_problem(code, detail, field=field, status=status)
    answer = msgspec.to_builtins(problem)
    return Exchange(name=str(code), summary=summary, answer=answer, method=method, path=path, **request)


def _unprovoked(summary: str, answer: Problem) -> Exchange:
    return Exchange(name=answer.code, summary=summary, answer=msgspec.to_builtins(answer))


_REFUSALS: Final[dict[str, tuple[Exchange, ...]]] = {
    "BadRequest": (
        _refused(
            "A key with a space in it",
            _F.INVALID_FIELD,
            f"the header {KEY_HEADER} must be 1 to 255 visible ASCII characters",
            field=KEY_HEADER,
            status=400,
            headers={KEY_HEADER: "invoice 10042"},
            body=_MAIL,
        ),
        _refused(
            "A body that is cut off",
            _F.INVALID_JSON,
            "the body: is not valid JSON: Expecting property name enclosed in double quotes at character 15",
            text='{"subject": "",',
        ),
    ),
    "Unauthorized": (
        _refused(
            "A token that nobody has",
            _H.UNAUTHORIZED,
            "the token is unknown, malformed, expired, revoked, or not for this service",
            headers={"Authorization": "Bearer not-a-token"},
            body=_MAIL,
        ),
    ),
    "Forbidden": (
        _refused(
            "An address of somebody else",
            _H.FORBIDDEN,
            "it does not own this address",
            field="from",
            body={**_MAIL, "from": "ceo@example.org"},
        ),
    ),
    "NotFound": (
        _refused("Another path", _H.NOT_FOUND, "this path is not part of the API", path="/", body=_MAIL),
    ),
    "MethodNotAllowed": (
        _refused("Another method", _H.METHOD_NOT_ALLOWED, "use one of: POST", method="GET"),
    ),
    "TooLarge": (
        _unprovoked(
            "A body beyond all limits",
            make_problem(_F.TOO_LARGE, "the body is larger than 36962304 bytes", status=413),
        ),
    ),
    "UnsupportedMediaType": (
        _refused(
            "A form",
            _H.UNSUPPORTED_MEDIA_TYPE,
            "send UTF-8 JSON as application/json, not compressed",
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            text="to=ann%40example.net",
        ),
    ),
    "RefusedMail": (
        _refused(
            "An address that is none",
            _F.INVALID_ADDRESS,
            "to[0]: not a valid address",
            field="to[0]",
            body={**_MAIL, "to": ["ann"]},
        ),
        _refused(
            "Another mail under a key that was used",
            _F.IDEMPOTENCY_CONFLICT,
            "idempotency_key: was used before for a different command",
            field="idempotency_key",
            headers={KEY_HEADER: _KEY},
            body={**_MAIL, "subject": "Your invoice A-10043"},
        ),
    ),
    "RateLimited": (
        _unprovoked("Too much of one token", make_problem(_H.RATE_LIMITED, "try again after 12 s")),
    ),
    "InternalError": (_unprovoked("A fault of Mailkeep", problem_of(RuntimeError())),),
    "Unavailable": (
        _unprovoked("PostgreSQL is away", problem_of(StoreUnavailableError("", in_doubt=False))),
        _unprovoked(
            "The issuer has never been reached",
            make_problem(_H.ISSUER_UNAVAILABLE, "nothing was taken; repeat the same request"),
        ),
    ),
}
_TAKEN: Final = {
    "send": (
        Exchange(
            name="mail",
            summary="A mail of a program to one recipient",
            headers={KEY_HEADER: _KEY},
            body=_MAIL,
            answer={"delivery_id": DELIVERY_ID, "status": "sending"},
        ),
    ),
}
CALLS: Final = {
    "send": Call(
        method="post",
        path=SEND,
        tag="send",
        summary="Send a mail",
        description="Answered when it is durable. `status` is `suppressed` where nobody gets it: stub mode, or every recipient is on "
        "the suppression list.",
        parameters=(key_header(), TRACEPARENT),
        takes=SendRequest.__name__,
        gives=shape_of(DeliveryAnswer),
        replays=True,
        refused=tuple(name for name in _REFUSED if name not in {"NotFound", "MethodNotAllowed"}),
    ),
}
_PARTS: Final = Parts(refused=_REFUSED, refusals=_REFUSALS, taken=_TAKEN)


def send_openapi() -> Schema:
    """Return the document."""
    return {
        "openapi": "3.1.0",
        "info": _INFO,
        "servers": [{"url": "http://127.0.0.1:8081", "description": "For example, `MAIL_SEND_HTTP_ADDR`."}],
        "security": [{"token": []}],
        "tags": [{"name": "send", "description": "What is answered 200 is durable."}],
        "paths": paths_of(CALLS, _PARTS),
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, or an access token of the configured OpenID Connect issuer.",
                }
            },
            "headers": {
                **HEADERS,
                "WwwAuthenticate": {
                    "description": "RFC 6750: whether the token is missing, wrong, or allows too little.",
                    "schema": {
                        "type": "string",
                        "pattern": '^(?:Bearer realm="mailkeep"(?:, error="[a-z_]+")?)$',
                    },
                },
            },
            "responses": responses_of(_PARTS),
            "schemas": _reachable((SendRequest, DeliveryAnswer, Problem)),
        },
    }


def _reachable(kinds: tuple[type, ...]) -> dict[str, Schema]:
    """Return the schemas of `kinds` and of what they refer to, and not those of other commands."""
    found = schemas(kinds, SCHEMAS)
    names, wanted = set[str](), [kind.__name__ for kind in kinds]
    while wanted:
        name = wanted.pop()
        if name not in names:
            names.add(name)
            wanted += _references(found[name])
    return {name: schema for name, schema in found.items() if name in names}


def _references(part: object) -> Iterator[str]:
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    if isinstance(part, dict) and "$ref" in part:
        yield part["$ref"].removeprefix(SCHEMAS)
    for inner in parts:
        yield from _references(inner)
