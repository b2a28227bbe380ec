"""The enqueued consumer: delivery commands that `mail.enqueue` left in the inbox table of committed transactions.

A row is the command until it is taken, and is removed only after the commit of what it became, as a stream entry is
acknowledged. A replica that dies on the way leaves rows that another takes; their keys make that harmless.

An operator's wish to replay a malformed command is a row too, beside the repairs to its fields: it is taken as the same
command of the same intake, and what became of it is noted in its record.
"""

import asyncio
import contextlib
import random
import traceback
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import asyncpg
import msgspec
import structlog

from mailkeep.aside import LARGE_BYTES, aside
from mailkeep.core.command import CommandError, FailureCode
from mailkeep.core.malformed import Intake, Malformed, raw_fields
from mailkeep.intake.accept import Accepted
from mailkeep.intake.commands import MAX_AGE_S, CommandIntake, RawCommand
from mailkeep.intake.stream_entry import entry_of_json, repaired
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.malformed import MalformedCommands
from mailkeep.store.postgres import Store
from mailkeep.store.sealing import Content, PayloadKeys, SealedError

BATCH: Final = 256
BATCH_BYTES: Final = 8 * 1024 * 1024
"""Where commands are large, fewer are taken at a time; one alone has no bound but that of jsonb (255 MB)."""
TAKEN_FOR_S: Final = 15.0
"""After so long a taken row is free again: its replica died, or its commit was lost."""
IDLE_S: Final = 1.0
"""The longest a committed command waits when its notification is lost."""
AWAY_S: Final = 1.0


class EnqueuedConsumer:
    """Takes commands from `mail.enqueued`. `run` until cancelled; `wake` when the listener heard of new ones."""

    def __init__(self, store: Store, intake: CommandIntake) -> None:
        self._store = store
        self._intake = intake
        self._records = MalformedCommands(store)
        self._woken = asyncio.Event()
        self._log = structlog.get_logger("enqueued_consumer")

    def wake(self) -> None:
        """Look again now."""
        self._woken.set()

    async def run(self) -> None:
        """Consume until cancelled."""
        self._log.info("enqueued consumer started")
        away = False
        try:
            while True:
                try:
                    await self._look()
                    if away:
                        self._log.info("enqueued commands are taken again")
                    away = False
                    continue
                except StoreUnavailableError as fault:
                    if not away:
                        self._log.warning("enqueued commands wait for PostgreSQL", error=str(fault))
                    away = True
                except Exception as fault:  # noqa: BLE001 - a boundary: the rows stay in the inbox and are taken again
                    self._trip(fault)
                await asyncio.sleep(AWAY_S * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        finally:
            self._log.info("enqueued consumer stopped")

    async def _look(self) -> None:
        self._woken.clear()
        rows = await self._store.fetch("take_enqueued", BATCH, TAKEN_FOR_S, BATCH_BYTES)
        if not rows:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_S):
                    await self._woken.wait()
            return
        answers = await self._intake.take([await self._command(row) for row in rows])
        await self._note_replays(rows, answers)
        await self._store.fetch("drop_enqueued", [row["id"] for row in rows])

    async def _command(self, row: asyncpg.Record) -> RawCommand:
        if len(row["command"]) > LARGE_BYTES:
            return await aside(_command, row, self._store.payload_keys)
        return _command(row, self._store.payload_keys)

    async def _note_replays(
        self, rows: Sequence[asyncpg.Record], answers: Sequence[Accepted | Malformed]
    ) -> None:
        for row, answer in zip(rows, answers, strict=True):
            if row["replay_of"] is not None:
                await self._records.note_replay(
                    row["replay_of"], answer if isinstance(answer, Malformed) else answer.delivery_id
                )

    def _trip(self, fault: Exception) -> None:
        # Its words may hold what a command held; its type and place do not.
        place = traceback.extract_tb(fault.__traceback__)[-1]
        self._log.error(
            "enqueued consumer met a fault; trying again",
            error=type(fault).__name__,
            at=f"{place.filename}:{place.lineno}",
        )


def _command(row: asyncpg.Record, keys: PayloadKeys) -> RawCommand:
    text = row["command"].encode()
    if row["replay_of"] is not None:
        try:
            return _replay(row, keys.open(row["replay_of"], Content.RAW, row["raw"]), text)
        except SealedError as sealed:
            fault = CommandError(FailureCode.INVALID_FIELD, "", f"is {sealed}")
            return RawCommand(Intake(row["intake"]), row["entry_id"], {}, fault)
    return RawCommand(Intake.SQL, str(row["id"]), *entry_of_json(text), row["delivery_id"])


def _replay(row: asyncpg.Record, raw: bytes, repairs: bytes) -> RawCommand:
    fields = repaired(raw_fields(raw), msgspec.json.decode(repairs, type=dict[str, str | None]))
    # It was never accepted, so an id that is too old to tell is no danger here: it goes under the row's.
    if _age_s(fields.get(b"delivery_id", b""), row["id"]) > MAX_AGE_S:
        fields[b"delivery_id"] = str(row["id"]).encode()
    return RawCommand(Intake(row["intake"]), row["entry_id"], fields)


def _age_s(delivery_id: bytes, row_id: UUID) -> float:
    try:
        given = UUID(delivery_id.decode())
    except ValueError:  # UnicodeDecodeError is one
        return 0.0
    return float((row_id.int >> 80) - (given.int >> 80)) / 1000 if given.version == 7 else 0.0
