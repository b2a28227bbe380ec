"""The keys of an OpenID Connect issuer (RFC 7517), fetched within bounds and kept while it is away.

They are found by the issuer's discovery document (OpenID Connect Discovery 1.0, section 4), unless their place is configured.
A key id that is not known makes them be fetched anew, at most every `REFRESH_S`, since an issuer may have changed its keys;
and every `MAX_AGE_S` what it took back is forgotten. What was fetched last stays in force while the issuer can't be reached, stalls or
answers garbage. One fetch is under way at a time, for all who wait.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import httpx2
import jwt
import msgspec
import structlog

from mailkeep.intake.bearer import IssuerUnavailableError

T = TypeVar("T")

FETCH_TIMEOUT_S: Final = 5.0
"""For discovery and keys together: callers wait for it, at the first use of a key."""
MAX_DOCUMENT_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 100
REFRESH_S: Final = 30.0
"""Between two fetches because of unknown key ids: anybody can make those up."""
RETRY_S: Final = 2.0
"""Between two fetches while there are no keys at all."""
MAX_AGE_S: Final = 600.0
DISCOVERY: Final = "/.well-known/openid-configuration"


class _FetchError(Exception):
    """The issuer answered something else than its keys; says what."""


class _Discovery(msgspec.Struct, frozen=True):
    issuer: str
    jwks_uri: str


class _KeySet(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


class IssuerKeys:
    """The keys of `issuer`, from `keys_url` or by discovery."""

    def __init__(
        self, issuer: str, keys_url: str | None = None, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._issuer = issuer
        self._keys_url = keys_url
        self._monotonic = monotonic
        self._tls = ssl.create_default_context()
        self._keys: dict[str, dict[str, Any]] = {}
        self._ready: dict[tuple[str, str], jwt.PyJWK] = {}
        self._fetched_s = self._asked_s = -float("inf")
        self._fetching: asyncio.Task[None] | None = None
        self._is_away = False
        self._log = structlog.get_logger("issuer_keys")

    async def key(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key with which a token says it is signed, None if the issuer has no such key.

        Without a `key_id` the issuer must have a single key. Raises `IssuerUnavailableError`.
        """
        if self._monotonic() - self._fetched_s > MAX_AGE_S:
            self._fetch_soon(RETRY_S)
        if not self._has(key_id):
            await self._fetch(REFRESH_S if self._keys else RETRY_S)
        if not self._keys:
            raise IssuerUnavailableError
        if not self._has(key_id):
            return None
        return self._made_ready(next(iter(self._keys)) if key_id is None else key_id, algorithm)

    async def close(self) -> None:
        """Let go of a fetch that is under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    def _has(self, key_id: str | None) -> bool:
        return len(self._keys) == 1 if key_id is None else key_id in self._keys

    def _made_ready(self, key_id: str, algorithm: str) -> jwt.PyJWK | None:
        """Return a key for one of its algorithms, None if it is for another."""
        ready = self._ready.get((key_id, algorithm))
        if ready is None:
            told = self._keys[key_id]
            if told.get("alg", algorithm) != algorithm:
                return None
            try:
                ready = jwt.PyJWK(told, algorithm)
            except (jwt.PyJWTError, ValueError, TypeError):  # of another kind, or no key at all
                return None
            self._ready[key_id, algorithm] = ready
        return ready

    # -- fetching ----------------------------------------------------------------------------------------------

    def _fetch_soon(self, pause_s: float) -> None:
        """Begin to fetch, unless that is under way or was tried within `pause_s`."""
        now_s = self._monotonic()
        if self._fetching is None and now_s - self._asked_s >= pause_s:
            self._asked_s = now_s
            self._fetching = asyncio.create_task(self._refresh(), name="issuer keys")

    async def _fetch(self, pause_s: float) -> None:
        self._fetch_soon(pause_s)
        if self._fetching is not None:
            await asyncio.shield(self._fetching)  # others wait for it too

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                keys = await self._fetched()
        except Exception as fault:  # noqa: BLE001 - a boundary: whatever an issuer does, its last keys stay in force
            if not self._is_away:
                self._log.warning("keys of the issuer can't be fetched", error=_told(fault))
            self._is_away = True
        else:
            self._keys, self._ready, self._fetched_s = keys, {}, self._monotonic()
            if self._is_away:
                self._log.info("keys of the issuer are fetched again", count=len(keys))
            self._is_away = False
        finally:
            self._fetching = None

    async def _fetched(self) -> dict[str, dict[str, Any]]:
        async with httpx2.AsyncClient(verify=self._tls, timeout=FETCH_TIMEOUT_S) as client:
            url = self._keys_url or await self._discovered(client)
            told = _decoded(await _document(client, url), _KeySet).keys
        keys = {
            str(key.get("kid", f"#{index}")): key
            for index, key in enumerate(told[:MAX_KEYS])
            if key.get("use", "sig") == "sig" and key.get("kty") != "oct"
        }
        if not keys:
            raise _FetchError("it has no key that signs")
        return keys

    async def _discovered(self, client: httpx2.AsyncClient) -> str:
        found = _decoded(await _document(client, self._issuer.rstrip("/") + DISCOVERY), _Discovery)
        if found.issuer != self._issuer:
            raise _FetchError("its discovery document is another issuer's")
        if not is_safe_url(found.jwks_uri):
            raise _FetchError("its keys are not at an https address")
        return found.jwks_uri


def is_safe_url(url: str) -> bool:
    """Whether keys from `url` can be trusted: https, or plain http on this machine."""
    parts = httpx2.URL(url)
    return parts.scheme == "https" or (
        parts.scheme == "http" and parts.host in {"127.0.0.1", "::1", "localhost"}
    )


async def _document(client: httpx2.AsyncClient, url: str) -> bytes:
    document = bytearray()
    async with client.stream("GET", url, headers={"accept": "application/json"}) as response:
        if response.status_code != 200:
            raise _FetchError(f"it answered {response.status_code}")
        async for piece in response.aiter_bytes():
            document += piece
            if len(document) > MAX_DOCUMENT_BYTES:
                raise _FetchError(f"it answered more than {MAX_DOCUMENT_BYTES} bytes")
    return bytes(document)


def _decoded(document: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(document, type=kind)
    except (msgspec.DecodeError, RecursionError) as fault:
        raise _FetchError("it answered no JSON of the kind") from fault


def _told(fault: Exception) -> str:
    return str(fault) or type(fault).__name__
