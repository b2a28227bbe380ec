"""API keys held against the table: who calls, and whose addresses they own.

A key that was found is remembered for `REMEMBERED_S`, so that a busy caller costs no look-up for each mail; that is how long a
revoked one may still be taken. Look-ups of many callers go to PostgreSQL together, one statement at a time: who guesses keys
keeps nobody else waiting for long. Secrets are compared in constant time.
"""

import contextlib
import hmac
import time
from collections.abc import Callable, Sequence
from typing import Final

from mailkeep.core.api_key import parse_token
from mailkeep.core.ownership import Owner
from mailkeep.store.api_keys import ApiKeys, KeyInForce
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.group_commit import GroupCommit

REMEMBERED_S: Final = 5.0
MAX_REMEMBERED: Final = 10_000
"""Keys remembered at a time, a few hundred bytes each; past it the longest remembered one is looked up again."""
_NO_HASH: Final = bytes(32)


class KeyHolders:
    """Tells the holders of API keys. Used by any number of requests at once."""

    def __init__(self, keys: ApiKeys, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._monotonic = monotonic
        self._look_ups = GroupCommit(self._look_up)
        self._remembered: dict[str, tuple[KeyInForce, float]] = {}

    async def owner_of(self, text: str) -> Owner | None:
        """Return who holds the token `text`, None if nobody does. Raises `StoreUnavailableError`, `OverloadedError`."""
        token = parse_token(text)
        if token is None:
            return None
        key = self._remembered_one(token.key_id)
        is_new = key is None
        if key is None:
            key = await self._look_ups.submit(token.key_id)
        secret_hash = key.secret_hash if key else _NO_HASH
        if not hmac.compare_digest(secret_hash, token.secret_hash) or key is None:
            return None
        if is_new:
            await self._remember(key)
        return Owner(f"key:{key.name}", frozenset(key.senders))

    def _remembered_one(self, key_id: str) -> KeyInForce | None:
        key, until_s = self._remembered.get(key_id, (None, 0.0))
        return key if self._monotonic() < until_s else None

    async def _remember(self, key: KeyInForce) -> None:
        for_s = REMEMBERED_S if key.left_s is None else min(REMEMBERED_S, key.left_s)
        self._remembered.pop(key.key_id, None)
        if len(self._remembered) >= MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[key.key_id] = (key, self._monotonic() + for_s)
        if key.is_first_use:
            with contextlib.suppress(StoreUnavailableError):  # noted with a later use
                await self._keys.note_used(key.key_id)

    async def _look_up(self, key_ids: list[str]) -> Sequence[KeyInForce | None]:
        found = await self._keys.find(key_ids)
        return [found.get(key_id) for key_id in key_ids]
