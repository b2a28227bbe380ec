"""API keys of the send intake in PostgreSQL. Only hashes of their secrets are stored; what a token is made of is not known here.

Called by `mailkeep.intake.api_keys` and `mailkeep.operator.keys`.
"""

from collections.abc import Sequence
from datetime import datetime

import asyncpg
import msgspec

from mailkeep.store.postgres import Store


class ApiKey(msgspec.Struct, frozen=True):
    """One key as operators see it. `expires_at` null: it does not expire. `last_used_at` is by the hour."""

    key_id: str
    name: str
    senders: tuple[str, ...]
    actor: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None


class KeyInForce(msgspec.Struct, frozen=True):
    """What a caller is held against. `left_s`: until it expires, None: never. `is_first_use`: of this hour."""

    key_id: str
    name: str
    secret_hash: bytes
    senders: tuple[str, ...]
    left_s: float | None
    is_first_use: bool


class ApiKeys:
    """The table `mail.api_keys`. Verbs raise `StoreUnavailableError` only."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(
        self,
        key_id: str,
        secret_hash: bytes,
        *,
        name: str,
        senders: Sequence[str],
        actor: str,
        expires_in_s: float | None,
    ) -> ApiKey:
        """Keep a new key and return it."""
        rows = await self._store.fetch(
            "add_api_key", key_id, name, secret_hash, list(senders), actor, expires_in_s
        )
        return _api_key(rows[0])

    async def page(self, limit: int, *, with_ended: bool = False) -> list[ApiKey]:
        """Return up to `limit` keys in force, the newest first; with `with_ended` also revoked and expired ones."""
        return [_api_key(row) for row in await self._store.fetch("read_api_keys", with_ended, limit)]

    async def revoke(self, key_id: str, actor: str) -> ApiKey | None:
        """Revoke a key for good; answers what it is now, None if there is none."""
        rows = await self._store.fetch("revoke_api_key", key_id, actor)
        return _api_key(rows[0]) if rows else None

    async def find(self, key_ids: Sequence[str]) -> dict[str, KeyInForce]:
        """Return those of `key_ids` that are in force, by their ids."""
        rows = await self._store.fetch("find_api_keys", list(key_ids))
        return {row["id"]: _in_force(row) for row in rows}

    async def note_used(self, key_id: str) -> None:
        """Note that a key was used in this hour."""
        await self._store.fetch("note_api_key_used", key_id)


def _api_key(row: asyncpg.Record) -> ApiKey:
    fields = dict(row)
    return msgspec.convert({"key_id": fields.pop("id"), **fields}, ApiKey)


def _in_force(row: asyncpg.Record) -> KeyInForce:
    fields = dict(row)
    return msgspec.convert({"key_id": fields.pop("id"), **fields}, KeyInForce)
