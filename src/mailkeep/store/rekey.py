"""Old keys laid down: what is sealed by them, or by none, is sealed anew by the newest, a batch a commit.

Each row is replaced only if it is still what was read, so that it may run beside any number of replicas. Called by
`mailkeep payloads`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg
import msgspec

from mailkeep.core.ids import FIRST_ID
from mailkeep.store.postgres import Store, sealed_recipients, sealed_sender
from mailkeep.store.sealing import Content, SealedError

BATCH: Final = 500
BATCH_BYTES: Final = 8 * 1024 * 1024
"""Where messages are large, fewer are taken at a time."""


class KeyUse(msgspec.Struct, frozen=True):
    """What is stored of one key, None: of none. `is_here`: the keys file has it."""

    name: str | None
    is_here: bool
    seals: bool
    first_used_at: datetime | None
    stored: int


class Rekeyed(msgspec.Struct, frozen=True):
    """What a run did: how many were sealed anew, how many could not be opened, and which keys are needed no more."""

    sealed: int
    unopened: int
    forgotten: tuple[str, ...]


class Rekey:
    """Verbs raise `StoreUnavailableError` only."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys = store.payload_keys

    async def uses(self) -> list[KeyUse]:
        """Return what each key still seals, newest first. Reads the beginning of everything that is stored."""
        stored = {row["name"]: row["count"] for row in await self._store.fetch("count_sealed")}
        known = {row["name"]: row["first_used_at"] for row in await self._store.fetch("read_payload_keys")}
        here = [key.name for key in self._keys]
        gone = sorted({name for name in (*stored, *known) if name is not None}.difference(here))
        newest = self._keys.newest
        uses = [
            KeyUse(
                name=name,
                is_here=name in self._keys,
                seals=newest is not None and name == newest.name,
                first_used_at=known.get(name),
                stored=stored.get(name, 0),
            )
            for name in (*here, *gone)
        ]
        if None in stored:
            uses.append(
                KeyUse(None, is_here=True, seals=newest is None, first_used_at=None, stored=stored[None])
            )
        return uses

    async def run(self) -> Rekeyed:
        """Seal by the newest key, which must be here, all that is not; forget the keys that seal nothing then."""
        assert self._keys.newest is not None
        await self._store.use_payload_keys()
        sealed, unopened = await self._payloads(self._keys.newest.name.encode())
        more_sealed, more_unopened = await self._raw(self._keys.newest.name.encode())
        forgotten = [
            use.name
            for use in await self.uses()
            if use.name is not None and use.first_used_at is not None and not use.seals and not use.stored
        ]
        for name in forgotten:
            await self._store.fetch("forget_payload_key", name)
        return Rekeyed(sealed + more_sealed, unopened + more_unopened, tuple(forgotten))

    async def _payloads(self, name: bytes) -> tuple[int, int]:
        sealed, unopened, after = 0, 0, FIRST_ID
        while rows := await self._store.fetch("read_to_rekey", after, BATCH, name, BATCH_BYTES):
            after = rows[-1]["delivery_id"]
            renewed = [new for row in rows if (new := self._renewed(row)) is not None]
            unopened += len(rows) - len(renewed)
            sealed += len(await self._store.fetch("rekey", *_columns(renewed, 7))) if renewed else 0
        return sealed, unopened

    def _renewed(self, row: asyncpg.Record) -> tuple[object, ...] | None:
        delivery_id, keys = row["delivery_id"], self._keys
        try:
            sender = keys.open_text(delivery_id, Content.SENDER, row["sender"])
            opened = [keys.open_text(delivery_id, Content.RECIPIENT, text) for text in row["recipients"]]
            message = self._anew(delivery_id, Content.MESSAGE, row["message"])
            command = self._anew(delivery_id, Content.COMMAND, row["command"])
        except SealedError:
            return None
        recipients = sealed_recipients(delivery_id, opened, keys)
        sender = sealed_sender(delivery_id, sender, keys)
        return delivery_id, recipients, message, command, row["message"], row["command"], sender

    async def _raw(self, name: bytes) -> tuple[int, int]:
        sealed, unopened, after = 0, 0, FIRST_ID
        while rows := await self._store.fetch("read_raw_to_rekey", after, BATCH, name):
            after = rows[-1]["id"]
            renewed: list[tuple[object, ...]] = []
            for row in rows:
                try:
                    renewed.append((row["id"], self._anew(row["id"], Content.RAW, row["raw"]), row["raw"]))
                except SealedError:
                    unopened += 1
            sealed += len(await self._store.fetch("rekey_raw", *_columns(renewed, 3))) if renewed else 0
        return sealed, unopened

    def _anew(self, owner: UUID, kind: Content, content: bytes | None) -> bytes | None:
        return (
            None if content is None else self._keys.seal(owner, kind, self._keys.open(owner, kind, content))
        )


def _columns(rows: Sequence[tuple[object, ...]], count: int) -> list[list[object]]:
    return [[row[index] for row in rows] for index in range(count)]
