"""Problem documents (RFC 9457): what the HTTP listeners say when they take something not.

`type` is a stable URN made of the code; `code` is one of the contract's failure codes or of `HttpCode`; `field` is the path
of the member that is wrong, the name of a header or of a query parameter. No document repeats a value, and no name that
could be one. Pure; called by the HTTP applications of `intake` and by `operator.api`.
"""

import re
from enum import StrEnum
from itertools import takewhile
from typing import Final, TypeAlias

import msgspec

from mailkeep.core.command import CommandError, FailureCode
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.group_commit import OverloadedError

MEDIA_TYPE: Final = b"application/problem+json"
URN: Final = "urn:mailkeep:problem:"
RETRY_AFTER_S: Final = 1

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]

_SHOWABLE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}(?:\[[0-9]{0,8}\])*")


class HttpCode(StrEnum):
    """What can be wrong with a request beside its command."""

    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    WRONG_STATUS = "wrong_status"
    LIVE_MAIL = "live_mail"
    MISDIRECTED = "misdirected"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    RATE_LIMITED = "rate_limited"
    ISSUER_UNAVAILABLE = "issuer_unavailable"
    UNAVAILABLE = "unavailable"
    OVERLOADED = "overloaded"
    INTERNAL_ERROR = "internal_error"


_KINDS: Final[dict[str, tuple[int, str]]] = {
    FailureCode.MISSING_FIELD: (422, "A field is missing"),
    FailureCode.UNKNOWN_FIELD: (422, "A field is not known"),
    FailureCode.INVALID_FIELD: (422, "A field has a wrong value"),
    FailureCode.INVALID_JSON: (400, "The body is not valid JSON"),
    FailureCode.INVALID_ADDRESS: (422, "An address is not valid"),
    FailureCode.INVALID_LOCALE: (422, "The locale is not valid"),
    FailureCode.UNSUPPORTED_PAYLOAD_MODE: (422, "The payload mode is not supported"),
    FailureCode.UNSUPPORTED_SOURCE: (422, "The source is not supported"),
    FailureCode.UNKNOWN_TEMPLATE: (422, "The template is not in the catalog"),
    FailureCode.MISSING_VARIABLE: (422, "The template needs a variable that is missing"),
    FailureCode.TOO_LARGE: (422, "Something exceeds its limit"),
    FailureCode.IDEMPOTENCY_CONFLICT: (422, "The idempotency key belongs to another command"),
    FailureCode.RESERVED_DOMAIN: (422, "The domain is reserved and has no route"),
    HttpCode.UNAUTHORIZED: (401, "A valid bearer token is required"),
    HttpCode.FORBIDDEN: (403, "The token does not allow this"),
    HttpCode.NOT_FOUND: (404, "There is nothing here"),
    HttpCode.METHOD_NOT_ALLOWED: (405, "The method is not allowed here"),
    HttpCode.WRONG_STATUS: (409, "The delivery stands where this does not apply"),
    HttpCode.LIVE_MAIL: (409, "The address is still in use"),
    HttpCode.MISDIRECTED: (421, "The request names another host"),
    HttpCode.UNSUPPORTED_MEDIA_TYPE: (415, "The body must be plain application/json"),
    HttpCode.RATE_LIMITED: (429, "The token has sent too much lately"),
    HttpCode.ISSUER_UNAVAILABLE: (503, "The issuer of the token can't be reached now"),
    HttpCode.UNAVAILABLE: (503, "The queue can't be reached now"),
    HttpCode.OVERLOADED: (503, "Too much is waiting already"),
    HttpCode.INTERNAL_ERROR: (500, "The request met a fault of the service"),
}

_HEADERS: Final[dict[int, Headers]] = {
    401: ((b"www-authenticate", b'Bearer realm="mailkeep"'),),
    413: ((b"connection", b"close"),),  # the rest of the body is not read
    503: ((b"retry-after", str(RETRY_AFTER_S).encode()),),
}


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One problem document."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    field: str = ""

    @property
    def headers(self) -> Headers:
        """The header fields that go with it."""
        return _HEADERS.get(self.status, ())


class ProblemError(Exception):
    """Ends a request with `problem`; `headers` stand for the usual ones of the same names."""

    def __init__(self, problem: Problem, headers: Headers = ()) -> None:
        super().__init__(problem.code)
        self.problem = problem
        self.headers = headers


def make_problem(
    code: FailureCode | HttpCode, detail: str, *, field: str = "", status: int | None = None
) -> Problem:
    """Return the document for `code`; `status` replaces the one that goes with it."""
    usual, title = _KINDS[code]
    return Problem(f"{URN}{code}", title, status or usual, code, detail, _showable(field))


def problem_of(fault: Exception, *, status: int | None = None) -> Problem:
    """Return the document for whatever ended a request; `status` is the one for a `CommandError`, if not its usual."""
    match fault:
        case ProblemError(problem=problem):
            return problem
        case CommandError(code=code, field=field, message=message):
            field = _showable(field)
            return make_problem(code, f"{field or 'the body'}: {message}", field=field, status=status)
        case StoreUnavailableError():
            return make_problem(
                HttpCode.UNAVAILABLE, "nothing was lost; repeat it, a command under the same idempotency key"
            )
        case OverloadedError():
            return make_problem(HttpCode.OVERLOADED, "nothing was taken; repeat the same request")
        case _:
            return make_problem(HttpCode.INTERNAL_ERROR, "repeating it with the same idempotency key is safe")


def _showable(field: str) -> str:
    """Return `field` up to the first part that a caller may have filled with something personal."""
    return ".".join(takewhile(_SHOWABLE.fullmatch, field.split(".")[:16]))
