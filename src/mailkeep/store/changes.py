"""What people change by hand, each in one commit with its record; a delivery that a replica is sending is never touched.

Called by `mailkeep.operator`.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import asyncpg
import msgspec

from mailkeep.core.delivery import DeliveryClass, DeliveryStatus, Source
from mailkeep.core.header import named_in
from mailkeep.core.idempotency import address_hash
from mailkeep.store.postgres import Store, sealed_recipients, sealed_sender
from mailkeep.store.reads import SCANNED_ROWS
from mailkeep.store.sealing import Content, SealedError


class Verb(StrEnum):
    """What may be done to a delivery by its id; a resend makes another one."""

    HOLD = "hold"
    RELEASE = "release"
    CANCEL = "cancel"
    CONFIRM = "confirm"
    DELETE = "delete"


class Resent(msgspec.Struct, frozen=True):
    """The delivery that a resend made; `replayed` if an earlier one under the same key did."""

    delivery_id: UUID
    replayed: bool


class RedriveFilter(msgspec.Struct, frozen=True):
    """Which dead letters to redrive; None lets all through. `since` and `until` are about when they were buried."""

    cause: str | None = None
    rule: str | None = None
    domain: str | None = None
    delivery_class: DeliveryClass | None = None
    source: Source | None = None
    since: datetime | None = None
    until: datetime | None = None


class Redrivable(msgspec.Struct, frozen=True):
    """A dead letter. `recipients` is None where its content is erased or can't be opened; `resent`: somebody did that already."""

    id: UUID
    recipients: tuple[str, ...] | None
    resent: bool


class RedrivablePage(msgspec.Struct, frozen=True):
    """Dead letters in the order of their ids; `after` is where the next page begins, None at the end."""

    letters: tuple[Redrivable, ...]
    after: UUID | None


class OperatorChanges:
    """Changes by hand. `actor` (who) and `reason` are recorded. All verbs raise `StoreUnavailableError`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def change(
        self, verb: Verb, delivery_id: UUID, *, actor: str, reason: str
    ) -> DeliveryStatus | None:
        """Move one delivery; answers its new status, None where `verb` does not apply to where it stands."""
        rows = await self._store.fetch("change", verb, delivery_id, actor, reason)
        return DeliveryStatus(rows[0]["status"]) if rows else None

    async def redrivable(self, wanted: RedriveFilter, limit: int, after: UUID) -> RedrivablePage:
        """Return up to `limit` dead letters with an id above `after`; a page may be short, even empty."""
        rows = await self._store.fetch(
            "read_redrivable",
            after,
            wanted.cause,
            wanted.rule,
            wanted.domain,
            wanted.delivery_class,
            wanted.source,
            wanted.since,
            wanted.until,
            SCANNED_ROWS,
            limit,
        )
        found = tuple(self._redrivable(row) for row in rows if row["id"] is not None)
        if len(found) == limit:
            return RedrivablePage(found, found[-1].id)
        return RedrivablePage(found, rows[0]["horizon"] if rows[0]["scanned"] == SCANNED_ROWS else None)

    def _redrivable(self, row: asyncpg.Record) -> Redrivable:
        recipients: Sequence[str] | None = row["recipients"]
        if recipients is not None:
            keys = self._store.payload_keys
            try:
                recipients = tuple(keys.open_text(row["id"], Content.RECIPIENT, text) for text in recipients)
            except SealedError:
                recipients = None  # sealed by a key that is gone: as good as erased
        return Redrivable(row["id"], recipients, row["resent"])

    async def resend(
        self,
        parent_id: UUID,
        recipients: Sequence[str],
        *,
        key: str | None = None,
        actor: str,
        reason: str,
        wait_s: float = 0.0,
    ) -> Resent | None:
        """Make a new delivery of a parent's content, for those of its `recipients` (all of them, in order) who did not get it.

        It is due in `wait_s`. None where the parent is not at rest, its content is erased, or `key` belongs to the resend of another.
        Raises `SealedError` where the content can't be opened.
        """
        keys = self._store.payload_keys
        rows = await self._store.fetch("read_to_resend", parent_id)
        if rows:
            new_id = rows[0]["id"]
            message = keys.open(parent_id, Content.MESSAGE, rows[0]["message"])
            sender = keys.open_text(parent_id, Content.SENDER, rows[0]["sender"])
            hashes = self._hashes(recipients)
            rows = await self._store.fetch(
                "resend",
                parent_id,
                key,
                actor,
                reason,
                hashes,
                new_id,
                sealed_recipients(new_id, recipients, keys).split("\n"),
                keys.seal(new_id, Content.MESSAGE, message),
                wait_s,
                sealed_sender(new_id, sender, keys),
                self._hashes(named_in(message)),
            )
        if rows:
            return Resent(rows[0]["id"], replayed=False)
        held_by = await self._store.find_keys([(Source.OPERATOR_RESEND, key)] if key else [])
        holder = held_by.get((Source.OPERATOR_RESEND, key or ""))
        # A key is taken under the fingerprint of its parent: that of another resend answers nothing.
        if holder is None or holder.fingerprint != parent_id.bytes:
            return None
        return Resent(holder.delivery_id, replayed=True)

    def _hashes(self, addresses: Sequence[str]) -> list[bytes]:
        return [address_hash(address, self._store.hash_key) for address in addresses]
