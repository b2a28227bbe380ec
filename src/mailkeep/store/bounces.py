"""Bounces that are owed, in PostgreSQL: what a trigger wrote beside each outcome, until its bounce is stored.

Called by `mailkeep.intake.bounces` alone; the trigger stands in migration 5.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID

import asyncpg
import msgspec

from mailkeep.core.bounce import MAX_HEAD_BYTES, OwedBounce, Said
from mailkeep.store.postgres import Store
from mailkeep.store.sealing import Content, PayloadKeys, SealedError

TAKEN_FOR_S: Final = 15.0
"""After so long a taken one is free again: its replica died."""
HEAD_READ_BYTES: Final = MAX_HEAD_BYTES + 4  # to see whether the header ends there
ATTEMPTS_READ: Final = 50
"""Attempts among which the last word about each recipient is looked for: more than the longest ladder."""

_SAID: Final = msgspec.json.Decoder(tuple[Said, ...])


class OwedBounces:
    """The table `mail.bounces_owed`. Verbs raise `StoreUnavailableError` only."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def take(self, limit: int) -> list[OwedBounce]:
        """Take up to `limit`, the oldest first; nobody else takes them for `TAKEN_FOR_S`.

        One whose content is sealed by a key that is not here is left for a replica that has it.
        """
        rows = await self._store.fetch(
            "take_owed_bounces", limit, TAKEN_FOR_S, HEAD_READ_BYTES, ATTEMPTS_READ
        )
        owed = []
        for row in rows:
            with suppress(SealedError):
                owed.append(_owed(row, self._store.payload_keys))
        return owed

    async def settle(self, ids: Sequence[UUID]) -> None:
        """Drop those that are owed no more."""
        await self._store.fetch("settle_owed_bounces", list(ids))


def _owed(row: asyncpg.Record, keys: PayloadKeys) -> OwedBounce:
    delivery_id: UUID = row["delivery_id"]
    head = keys.open(delivery_id, Content.MESSAGE, row["head"] or b"")[:HEAD_READ_BYTES]
    return OwedBounce(
        id=row["id"],
        delivery_id=delivery_id,
        failed=row["failed"],
        status=row["status"],
        accepted_at=row["accepted_at"],
        sender=row["sender"] and keys.open_text(delivery_id, Content.SENDER, row["sender"]),
        recipients=tuple(
            keys.open_text(delivery_id, Content.RECIPIENT, address) for address in row["recipients"] or ()
        ),
        head=head,
        said=_SAID.decode(row["said"]) if row["said"] else (),
        traceparent=row["traceparent"],
    )
