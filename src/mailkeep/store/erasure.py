"""What is stored of one recipient, counted and erased in bounded commits; each may be done again without harm.

Called by `mailkeep.operator.erase`.
"""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Final
from uuid import UUID

import msgspec

from mailkeep.core.idempotency import address_hash
from mailkeep.core.malformed import raw_fields
from mailkeep.store.malformed import NO_FIELDS, MalformedCommands
from mailkeep.store.postgres import Store

BATCH: Final = 500
"""Deliveries of one commit: some 50 ms, so that it stands in no attempt's way."""
PAGE: Final = 50
"""Malformed commands read at a time, of up to 256 kB each."""


class Counts(msgspec.Struct):
    """How much there is, or was erased, by kind. `notes`: what people wrote beside their changes."""

    deliveries: int = 0
    payloads: int = 0
    attempts: int = 0
    dead_letters: int = 0
    suppressions: int = 0
    malformed_commands: int = 0
    keys: int = 0
    notes: int = 0
    cancelled: int = 0

    def add(self, more: dict[str, int]) -> None:
        """Add what one commit did."""
        for name, count in more.items():
            setattr(self, name, getattr(self, name) + count)


class Live(msgspec.Struct, frozen=True):
    """What is not at rest: waiting or held, being sent, and commands of `mail.enqueue` that nobody has taken yet."""

    waiting: int
    sending: int
    inbox: int


class Erasure:
    """One recipient's. `address` as `Mailbox.address` gives it; letter case does not matter. Raises `StoreUnavailableError` only."""

    def __init__(self, store: Store, address: str) -> None:
        self._store = store
        self._address = address.lower()
        self._hash = address_hash(address, store.hash_key)

    async def look(self) -> tuple[Counts, Live]:
        """Return what there is; changes nothing."""
        row = dict((await self._store.fetch("read_erasable", self._hash, self._address))[0])
        live = Live(row.pop("waiting"), row.pop("sending"), row.pop("inbox"))
        counts = Counts(**row)
        async for found in self._malformed():
            counts.malformed_commands += len(found)
        return counts, live

    async def cancel(self, counts: Counts, actor: str) -> None:
        """Cancel what waits or is held; a claimed one is left to its replica."""
        while rows := await self._store.fetch("cancel_of_recipient", self._hash, actor, BATCH):
            counts.cancelled += len(rows)

    async def erase(self, counts: Counts, *, keep_suppression: bool) -> None:
        """Erase what is at rest."""
        while (row := (await self._store.fetch("erase_of_recipient", self._hash, BATCH))[0])["deliveries"]:
            counts.add(dict(row))
        counts.add(dict((await self._store.fetch("erase_mentions", self._hash, self._address))[0]))
        rows = await self._store.fetch("erase_suppression", self._hash, keep_suppression)
        counts.suppressions += len(rows)
        async for found in self._malformed():
            counts.malformed_commands += len(await self._store.fetch("erase_malformed", found, NO_FIELDS))

    async def begin(self, actor: str, reason: str) -> UUID:
        """Record that an erasure begins, without saying of whom; return its id."""
        erasure_id: UUID = (await self._store.fetch("begin_erasure", actor, reason))[0]["id"]
        return erasure_id

    async def end(self, erasure_id: UUID, counts: Counts) -> None:
        """Record what it erased."""
        await self._store.fetch("end_erasure", erasure_id, msgspec.json.encode(counts).decode())

    async def _malformed(self) -> AsyncIterator[Sequence[UUID]]:
        records, before = MalformedCommands(self._store), None
        while page := await records.page(before=before, limit=PAGE):
            before = page[-1].id
            found = [stored.id for stored in page if _mentions(stored.record.raw, self._address)]
            if found:
                yield found


def _mentions(raw: bytes, address: str) -> bool:
    return any(address in text for value in raw_fields(raw).values() for text in _readings(value))


def _readings(value: bytes) -> tuple[str, ...]:
    """Return `value` as it is written, and as JSON without escapes where it is JSON; in lower case."""
    text = value.decode("utf-8", "replace")
    try:
        return text.lower(), json.dumps(json.loads(text), ensure_ascii=False).lower()
    except (ValueError, RecursionError):
        return (text.lower(),)
