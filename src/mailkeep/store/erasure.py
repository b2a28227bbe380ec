"""What is stored of one address, counted and erased in bounded commits; each may be done again without harm.

Called by `mailkeep.operator.erase`.
"""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Final
from uuid import UUID

import msgspec

from mailkeep.core.idempotency import address_hash
from mailkeep.core.malformed import Malformed, raw_fields
from mailkeep.store.bounces import TAKEN_FOR_S
from mailkeep.store.malformed import NO_FIELDS, MalformedCommands
from mailkeep.store.postgres import Store

BATCH: Final = 500
"""Deliveries of one commit: some 50 ms, so that it stands in no attempt's way."""
PAGE: Final = 50
"""Malformed commands read at a time, of up to 256 kB each."""


class Counts(msgspec.Struct):
    """How much there is, or was erased, by kind.

    `keys` are idempotency keys, `api_keys` those that programs send with, `notes` what people wrote beside their changes.
    """

    deliveries: int = 0
    payloads: int = 0
    attempts: int = 0
    dead_letters: int = 0
    suppressions: int = 0
    malformed_commands: int = 0
    keys: int = 0
    api_keys: int = 0
    notes: int = 0
    cancelled: int = 0

    def add(self, more: dict[str, int]) -> None:
        """Add what one commit did."""
        for name, count in more.items():
            setattr(self, name, getattr(self, name) + count)


class Live(msgspec.Struct, frozen=True):
    """What is not at rest: deliveries that wait or are held, or are being sent; bounces that are being made.

    And `inbox`, commands of `mail.enqueue` that nobody has taken yet, and `api_keys` in force that own the address.
    """

    waiting: int = 0
    sending: int = 0
    bounces: int = 0
    inbox: int = 0
    api_keys: int = 0

    @property
    def stops(self) -> bool:
        """Whether there is something that an erasure must be asked to end."""
        return bool(self.waiting or self.api_keys)


class Erasure:
    """One address's, be it a recipient's, a sender's, or one to reply to. `address` as `Mailbox.address` gives it; letter case does not matter. Raises `StoreUnavailableError` only."""

    def __init__(self, store: Store, address: str) -> None:
        self._store = store
        self._address = address.lower()
        self._hash = address_hash(address, store.hash_key)

    async def look(self) -> tuple[Counts, Live]:
        """Return what there is; changes nothing."""
        row = dict((await self._store.fetch("read_erasable", self._hash, self._address, TAKEN_FOR_S))[0])
        live = Live(
            waiting=row.pop("waiting"),
            sending=row.pop("sending"),
            bounces=row.pop("bounces"),
            inbox=row.pop("inbox"),
            api_keys=row.pop("keys_in_force"),
        )
        counts = Counts(**row)
        async for found in self._malformed():
            counts.malformed_commands += len(found)
        return counts, live

    async def cancel(self, counts: Counts, actor: str) -> None:
        """Cancel what waits or is held; a claimed one is left to its replica."""
        while rows := await self._store.fetch("cancel_of_recipient", self._hash, actor, BATCH):
            counts.cancelled += len(rows)

    async def erase(self, counts: Counts, actor: str, *, keep_suppression: bool) -> None:
        """Erase what is at rest; a key that owns nothing else is revoked by `actor`."""
        while (row := (await self._store.fetch("erase_of_recipient", self._hash, BATCH, TAKEN_FOR_S))[0])[
            "deliveries"
        ]:
            counts.add(dict(row))
        counts.add(dict((await self._store.fetch("erase_mentions", self._hash, self._address))[0]))
        counts.api_keys += len(await self._store.fetch("erase_api_keys", self._address, actor))
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
            found = [stored.id for stored in page if _mentions(stored.record, self._address)]
            if found:
                yield found


def _mentions(record: Malformed, address: str) -> bool:
    shown = (record.field, record.delivery_id or "", record.source or "", record.message)
    said = (text for value in raw_fields(record.raw).values() for text in _readings(value))
    return any(address in text for text in (*map(str.lower, shown), *said))


def _readings(value: bytes) -> tuple[str, ...]:
    """Return `value` as it is written, and as JSON without escapes where it is JSON; in lower case."""
    text = value.decode("utf-8", "replace")
    try:
        return text.lower(), json.dumps(json.loads(text), ensure_ascii=False).lower()
    except (ValueError, RecursionError):
        return (text.lower(),)
