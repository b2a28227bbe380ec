"""Malformed commands in PostgreSQL: kept once each, listed, replayed, forgotten after their retention."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg
import msgspec

from mailkeep.core.command import FailureCode
from mailkeep.core.ids import new_id
from mailkeep.core.malformed import Intake, Malformed
from mailkeep.store.postgres import Store
from mailkeep.store.sealing import Content, PayloadKeys, SealedError

NO_FIELDS: Final = b"\x80"
"""Raw fields that are none: an empty map of MessagePack. Shown in place of those that can't be opened."""


class StoredMalformed(msgspec.Struct, frozen=True):
    """A malformed command as it is stored.

    `replay_waits`: a replay is asked for and not done yet. The last one done was at `replayed_at`, either as the delivery
    `replayed_as` or refused again for `replay_refusal`.
    """

    id: UUID
    record: Malformed
    rejected_at: datetime
    replay_waits: bool
    replayed_at: datetime | None
    replayed_as: UUID | None
    replay_refusal: str | None


class MalformedCommands:
    """The table `mail.malformed_commands`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def keep(self, records: Sequence[Malformed], now_s: float) -> int:
        """Store `records`, each entry once; answers how many were new. Raises `StoreUnavailableError`."""
        ids, keys = [new_id(now_s) for _ in records], self._store.payload_keys
        rows = await self._store.fetch(
            "keep_malformed",
            ids,
            [record.intake for record in records],
            [record.entry_id for record in records],
            [record.failure_code for record in records],
            [record.field for record in records],
            [record.message for record in records],
            [record.delivery_id for record in records],
            [record.source for record in records],
            [
                keys.seal(record_id, Content.RAW, record.raw)
                for record_id, record in zip(ids, records, strict=True)
            ],
            [record.cut for record in records],
        )
        return len(rows)

    async def page(
        self,
        *,
        before: UUID | None = None,
        code: str | None = None,
        source: str | None = None,
        limit: int = 50,
    ) -> list[StoredMalformed]:
        """Return up to `limit` records, newest first, older than `before`."""
        rows = await self._store.fetch("read_malformed", before, code, source, limit)
        return [_stored(row, self._store.payload_keys) for row in rows]

    async def get(self, record_id: UUID) -> StoredMalformed | None:
        """Return one record, or None."""
        rows = await self._store.fetch("read_malformed_one", record_id)
        return _stored(rows[0], self._store.payload_keys) if rows else None

    async def ask_replay(self, record_id: UUID, repairs: Mapping[str, str | None]) -> bool:
        """Have a record taken again by any replica, with its fields repaired (a text to set, None to leave out).

        False if there is no such record that is whole and not replayed, or its replay is asked for already.
        """
        command = msgspec.json.encode(repairs).decode()
        return bool(await self._store.fetch("ask_replay", record_id, command))

    async def note_replay(self, record_id: UUID, answer: UUID | Malformed) -> None:
        """Note what came of a replay: the delivery it became, or why it was refused again."""
        if isinstance(answer, Malformed):
            refusal = f"{answer.failure_code} {answer.field}: {answer.message}"
            await self._store.fetch("note_replay", record_id, None, refusal)
        else:
            await self._store.fetch("note_replay", record_id, answer, None)


def _stored(row: asyncpg.Record, keys: PayloadKeys) -> StoredMalformed:
    try:
        raw = keys.open(row["id"], Content.RAW, row["raw"])
    except SealedError:
        raw = NO_FIELDS
    return StoredMalformed(
        id=row["id"],
        record=Malformed(
            intake=Intake(row["intake"]),
            entry_id=row["entry_id"],
            failure_code=FailureCode(row["failure_code"]),
            field=row["field"],
            message=row["message"],
            delivery_id=row["delivery_id"],
            source=row["source"],
            raw=raw,
            cut=row["cut"],
        ),
        rejected_at=row["rejected_at"],
        replay_waits=row["replay_waits"],
        replayed_at=row["replayed_at"],
        replayed_as=row["replayed_as"],
        replay_refusal=row["replay_refusal"],
    )
