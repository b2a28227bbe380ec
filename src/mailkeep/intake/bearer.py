"""The bearer of a request to the send intake (RFC 6750): a token in the Authorization header, and the owner it proves.

A token is told by its form: one of ours is an API key, anything else an access token of the configured issuer. None is taken from
a query or a body, where proxies would log it. 401 says that nobody is proven, 403 that somebody is who may not do this.
"""

import re
from typing import Final, Protocol

from mailkeep.core.api_key import PREFIX
from mailkeep.core.ownership import Owner
from mailkeep.intake.api_keys import KeyHolders
from mailkeep.intake.problems import Headers, HttpCode, ProblemError, make_problem

MAX_TOKEN_CHARS: Final = 16 * 1024
_BEARER: Final = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*) *", re.IGNORECASE)
_INVALID: Final[Headers] = ((b"www-authenticate", b'Bearer realm="mailkeep", error="invalid_token"'),)
_INSUFFICIENT: Final[Headers] = (
    (b"www-authenticate", b'Bearer realm="mailkeep", error="insufficient_scope"'),
)


class TokenRefusedError(Exception):
    """The token proves nothing."""


class ScopeMissingError(Exception):
    """The token is valid, and not meant for sending mail."""


class IssuerUnavailableError(Exception):
    """No key of the issuer was ever fetched, so that no token can be judged."""


class TokenJudge(Protocol):
    """What judges access tokens: `mailkeep.intake.access_tokens`, which is loaded only where an issuer is configured."""

    async def owner_of(self, token: str) -> Owner:
        """Return who bears `token`. Raises the three errors above."""


class Bearers:
    """Tells who sends a request. Without `access_tokens` only API keys are taken."""

    def __init__(self, keys: KeyHolders, access_tokens: TokenJudge | None) -> None:
        self._keys = keys
        self._access_tokens = access_tokens

    async def owner_of(self, headers: list[tuple[bytes, bytes]]) -> Owner:
        """Return the owner that a request's token proves. Raises `ProblemError`, `StoreUnavailableError`, `OverloadedError`."""
        token = _token(headers)
        try:
            owner = await self._bearer(token)
        except TokenRefusedError:
            owner = None
        except ScopeMissingError:
            raise forbidden("it has not the scope that is needed") from None
        except IssuerUnavailableError:
            detail = "nothing was taken; repeat the same request"
            raise ProblemError(make_problem(HttpCode.ISSUER_UNAVAILABLE, detail)) from None
        if owner is None:
            detail = "the token is unknown, malformed, expired, revoked, or not for this service"
            raise ProblemError(make_problem(HttpCode.UNAUTHORIZED, detail), _INVALID)
        return owner

    async def _bearer(self, token: str) -> Owner | None:
        if token.startswith(PREFIX):
            return await self._keys.owner_of(token)
        return await self._access_tokens.owner_of(token) if self._access_tokens else None


def _token(headers: list[tuple[bytes, bytes]]) -> str:
    given = [value for name, value in headers if name == b"authorization"]
    if len(given) != 1 or not given[0].lower().startswith(b"bearer"):
        raise ProblemError(make_problem(HttpCode.UNAUTHORIZED, "send one token as Authorization: Bearer …"))
    token = _BEARER.fullmatch(given[0])
    if token is None or len(token[1]) > MAX_TOKEN_CHARS:
        raise ProblemError(make_problem(HttpCode.UNAUTHORIZED, "this is no bearer token"), _INVALID)
    return token[1].decode("ascii")


def forbidden(why: str, field: str = "") -> ProblemError:
    """Return what ends a request that its token does not allow."""
    return ProblemError(make_problem(HttpCode.FORBIDDEN, why, field=field), _INSUFFICIENT)
