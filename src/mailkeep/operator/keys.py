"""API keys of the send intake, for operators: made, shown, revoked. A token is told once, when it is made; nobody can look it up.

Called by `mailkeep.cli` and `mailkeep.dev`.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from mailkeep.core.api_key import MAX_NAME_CHARS, new_token, parse_token
from mailkeep.core.ownership import parse_senders
from mailkeep.store.api_keys import ApiKey, ApiKeys
from mailkeep.store.postgres import Store

MAX_LISTED: Final = 10_000


class CreatedKey(msgspec.Struct, frozen=True):
    """A new key with its token, which is not stored anywhere."""

    token: str
    key: ApiKey


class OperatorKeys:
    """The verbs. They raise ValueError for what is given wrong, `StoreUnavailableError` where they can't be done now."""

    def __init__(self, store: Store) -> None:
        self._keys = ApiKeys(store)

    async def create(
        self, name: str, senders: Sequence[str], *, actor: str, expires_in_s: float | None = None
    ) -> CreatedKey:
        """Make a key for the program `name`, which may send from `senders`: addresses and `@domain`s."""
        if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
            raise ValueError(f"a name has 1 to {MAX_NAME_CHARS} printable characters")
        owned = parse_senders(senders)
        text = new_token()
        token = parse_token(text)
        assert token is not None
        key = await self._keys.add(
            token.key_id,
            token.secret_hash,
            name=name,
            senders=owned,
            actor=actor,
            expires_in_s=expires_in_s,
        )
        return CreatedKey(text, key)

    async def page(self, *, with_ended: bool = False) -> list[ApiKey]:
        """Return the keys in force, the newest first; with `with_ended` also revoked and expired ones."""
        return await self._keys.page(MAX_LISTED, with_ended=with_ended)

    async def revoke(self, key_id: str, *, actor: str) -> ApiKey | None:
        """Revoke a key for good; None if there is none."""
        return await self._keys.revoke(key_id, actor)
