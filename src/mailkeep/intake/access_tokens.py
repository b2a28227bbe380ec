"""Access tokens of an OpenID Connect issuer (RFC 9068, RFC 7519): who calls, and whose addresses they own.

A token is taken if its signature is by a key of the issuer with an asymmetric algorithm (RFC 8725 section 3), it is in force, of this
issuer and for us: `aud` names us, or, of issuers that give no `aud`, `client_id` does. What its bearer owns follows from a verified
address in a claim, and from a file that maps values of claims to addresses.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import jwt
import msgspec

from mailkeep.core.ownership import Owner, OwnershipError, parse_senders
from mailkeep.intake.bearer import ScopeMissingError, TokenRefusedError
from mailkeep.intake.issuer import IssuerKeys

ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
LEEWAY_S: Final = 30.0
"""By how much the clocks of the issuer and ours may differ."""
MAX_OWNED_BY_CLAIM: Final = 100
"""Entries of one claim that are looked at, such as groups."""
EMAIL: Final = "email"
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_TRUE: Final = (True, "true")  # some issuers write it as text
_INVALID: Final = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)
"""What the library raises for tokens that are none; before the signature is checked they are anybody's."""


class TokenRules(msgspec.Struct, frozen=True):
    """What this deployment wants of a token. `senders`: claim -> value -> addresses and domains."""

    issuer: str
    audiences: frozenset[str]
    scope: str | None = None
    sender_claim: str = EMAIL
    senders: Mapping[str, Mapping[str, tuple[str, ...]]] = {}


class AccessTokens:
    """Tells the bearers of access tokens."""

    def __init__(self, rules: TokenRules, keys: IssuerKeys) -> None:
        self._rules = rules
        self._keys = keys

    async def owner_of(self, token: str) -> Owner:
        """Return who bears `token`. Raises `TokenRefusedError`, `ScopeMissingError`, `IssuerUnavailableError`."""
        claims = await self._claims(token)
        if self._rules.scope is not None and self._rules.scope not in _scopes(claims):
            raise ScopeMissingError
        return Owner(f"oidc:{claims['sub']}", frozenset(self._senders(claims)))

    async def _claims(self, token: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
        except _INVALID as fault:
            raise TokenRefusedError from fault
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS or str(header.get("typ", "jwt")).lower() not in _TYPES:
            raise TokenRefusedError
        key = await self._keys.key(key_id, algorithm)
        if key is None:
            raise TokenRefusedError
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                issuer=self._rules.issuer,
                leeway=LEEWAY_S,
                options={
                    "require": ["exp", "iss", "sub"],
                    "verify_aud": False,
                    "enforce_minimum_key_length": True,
                },
            )
        except _INVALID as fault:
            raise TokenRefusedError from fault
        if self._rules.audiences.isdisjoint(_meant_for(claims)):
            raise TokenRefusedError
        return claims

    def _senders(self, claims: Mapping[str, Any]) -> Iterator[str]:
        rules = self._rules
        if rules.sender_claim != EMAIL or claims.get("email_verified") in _TRUE:
            for address in _texts(claims.get(rules.sender_claim)):
                yield from _owned(address)
        for claim, owned in rules.senders.items():
            for value in _texts(claims.get(claim)):
                yield from owned.get(value, ())


def _meant_for(claims: Mapping[str, Any]) -> list[str]:
    return _texts(claims["aud"] if "aud" in claims else claims.get("client_id"))


def _scopes(claims: Mapping[str, Any]) -> list[str]:
    """Return the scopes of a token: `scope` as RFC 8693 has it, `scp` as some issuers do."""
    return [
        word for claim in ("scope", "scp") for text in _texts(claims.get(claim)) for word in text.split(" ")
    ]


def _texts(claim: object) -> list[str]:
    values = claim[:MAX_OWNED_BY_CLAIM] if isinstance(claim, list) else [claim]
    return [value for value in values if isinstance(value, str)]


def _owned(address: str) -> tuple[str, ...]:
    try:
        return () if address.startswith("@") else parse_senders((address,))
    except OwnershipError:
        return ()  # an issuer's other idea of an address owns nothing here
