"""Malformed commands as operators see them, over HTTP and on the command line alike: listed, shown, replayed.

What a command said (addresses, content) is only in its raw fields, which `raw_fields` of one record gives. A replay is asked
for here and done by any running service: the same command, with its fields repaired, is taken again as if its intake had
just read it, with its own source, key and delivery id. So it has the one meaning commands have, and can't be sent twice.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from mailkeep.core.command import CommandError, FailureCode
from mailkeep.core.malformed import raw_fields
from mailkeep.store.malformed import MalformedCommands, StoredMalformed
from mailkeep.store.postgres import Store

MAX_PAGE: Final = 200
"""Records of one page: an answer stays far below a megabyte."""


class MalformedView(msgspec.Struct, frozen=True):
    """One malformed command. `state` is `rejected`, `replay_waits`, `replayed` or `refused_again`.

    `delivery_id` and `source` are the producer's own; `cut`: too large to be kept whole, and so to be replayed.
    """

    id: UUID
    state: str
    intake: str
    entry_id: str
    failure_code: str
    field: str
    message: str
    delivery_id: str | None
    source: str | None
    cut: bool
    rejected_at: datetime
    replayed_at: datetime | None
    replayed_as: UUID | None
    replay_refusal: str | None

    @property
    def can_be_replayed(self) -> bool:
        """Whether a replay may be asked for now."""
        return not self.cut and self.state in {"rejected", "refused_again"}


class MalformedPage(msgspec.Struct, frozen=True):
    """Malformed commands, newest first; the end is where `cursor` is None."""

    malformed_commands: tuple[MalformedView, ...]
    cursor: UUID | None


class OperatorMalformed:
    """What operators may ask of malformed commands. Verbs raise `StoreUnavailableError`."""

    def __init__(self, store: Store) -> None:
        self._records = MalformedCommands(store)

    async def page(
        self,
        limit: int,
        cursor: UUID | None = None,
        *,
        code: str | None = None,
        source: str | None = None,
    ) -> MalformedPage:
        """Return up to `limit` (at most `MAX_PAGE`) records older than `cursor`. Raises `CommandError` for a bad filter."""
        if code is not None and code not in FailureCode.__members__.values():
            known = ", ".join(FailureCode)
            raise CommandError(FailureCode.INVALID_FIELD, "code", f"must be one of: {known}")
        found = await self._records.page(before=cursor, code=code, source=source, limit=limit)
        return MalformedPage(tuple(map(_view, found)), found[-1].id if len(found) == limit else None)

    async def get(self, record_id: UUID) -> MalformedView | None:
        """Return one record, None if there is none with this id."""
        stored = await self._records.get(record_id)
        return None if stored is None else _view(stored)

    async def raw_fields(self, record_id: UUID) -> dict[bytes, bytes]:
        """Return what the command said, nothing if there is no such record. Holds addresses and content."""
        stored = await self._records.get(record_id)
        return {} if stored is None else raw_fields(stored.record.raw)

    async def ask_replay(self, record_id: UUID, repairs: Mapping[str, str | None]) -> bool:
        """Have a command taken again with its fields repaired: a text to set, None to leave a field out.

        False if that can't be: see `MalformedView.can_be_replayed`.
        """
        return await self._records.ask_replay(record_id, repairs)


def _view(stored: StoredMalformed) -> MalformedView:
    record = stored.record
    if stored.replayed_as:
        state = "replayed"
    elif stored.replay_waits:
        state = "replay_waits"
    else:
        state = "refused_again" if stored.replay_refusal else "rejected"
    return MalformedView(
        id=stored.id,
        state=state,
        intake=record.intake,
        entry_id=record.entry_id,
        failure_code=record.failure_code,
        field=record.field,
        message=record.message,
        delivery_id=record.delivery_id,
        source=record.source,
        cut=record.cut,
        rejected_at=stored.rejected_at,
        replayed_at=stored.replayed_at,
        replayed_as=stored.replayed_as,
        replay_refusal=stored.replay_refusal,
    )
