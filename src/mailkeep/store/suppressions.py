"""The suppression list in PostgreSQL: read, added to and taken from by hand; what attempts add stands in `Store.finish`.

Called by `mailkeep.operator`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg
import msgspec

from mailkeep.core.idempotency import address_hash
from mailkeep.core.suppression import NewSuppression, SuppressionReason
from mailkeep.store.postgres import Store

ERASED: Final = "erased"
"""Stands for the address of a suppression whose person asked for erasure; its hash still keeps mail away."""


class Suppression(msgspec.Struct, frozen=True):
    """An address that gets no mail until `expires_at`, null: for ever.

    `evidence` is the mail server's reply, or what a person noted. Either an attempt made it (`delivery_id`, `attempt`, `rule`)
    or a person (`actor`).
    """

    suppression_id: UUID
    address: str
    reason: SuppressionReason
    evidence: str
    rule: str | None
    delivery_id: UUID | None
    attempt: int | None
    actor: str | None
    created_at: datetime
    expires_at: datetime | None


class Suppressions:
    """The table `mail.suppressions`. An `address` is as `Mailbox.address` gives it. Verbs raise `StoreUnavailableError` only."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(
        self,
        limit: int,
        *,
        before: UUID | None = None,
        address: str | None = None,
        reason: SuppressionReason | None = None,
    ) -> list[Suppression]:
        """Return up to `limit` suppressions in force, newest first, older than `before`."""
        digest = None if address is None else self._hash(address)
        rows = await self._store.fetch("read_suppressions", before, digest, reason, limit)
        return list(map(_suppression, rows))

    async def add(
        self, batch: Sequence[NewSuppression], *, actor: str, expires_in_s: float | None = None
    ) -> int:
        """Suppress addresses in one commit, with its record; answers how many are new or last longer now.

        One without an `expires_at` lasts `expires_in_s`, None: for ever. Nothing is shortened.
        """
        rows = await self._store.fetch(
            "add_suppressions",
            [self._hash(new.address) for new in batch],
            [new.address for new in batch],
            [new.reason for new in batch],
            [new.evidence for new in batch],
            [new.expires_at for new in batch],
            actor,
            expires_in_s,
        )
        return len(rows)

    async def remove(self, which: UUID | str, *, actor: str, note: str) -> Suppression | None:
        """Let an address get mail again, named by its suppression's id or by itself; answers what it was, None if nothing."""
        digest, suppression_id = (None, which) if isinstance(which, UUID) else (self._hash(which), None)
        rows = await self._store.fetch("remove_suppression", digest, suppression_id, actor, note)
        return _suppression(rows[0]) if rows else None

    def _hash(self, address: str) -> bytes:
        return address_hash(address, self._store.hash_key)


def _suppression(row: asyncpg.Record) -> Suppression:
    return msgspec.convert(dict(row), Suppression)
