"""The enqueued consumer: delivery commands that `mail.enqueue` left in the inbox table of committed transactions.

A row is the command until it is taken, and is removed only after the commit of what it became, as a stream entry is
acknowledged. A replica that dies on the way leaves rows that another takes; their keys make that harmless.
"""

import asyncio
import contextlib
import random
from typing import Final
from uuid import UUID

import structlog

from mailkeep.faults import FaultPoint, reach
from mailkeep.intake.commands import CommandIntake, RawCommand
from mailkeep.intake.stream_entry import entry_of_json
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.postgres import Store

BATCH: Final = 128
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
        self._woken = asyncio.Event()
        self._log = structlog.get_logger("enqueued_consumer")

    def wake(self) -> None:
        """Look again now."""
        self._woken.set()

    async def run(self) -> None:
        """Consume until cancelled."""
        self._log.info("enqueued consumer started")
        try:
            while True:
                try:
                    await self._look()
                except StoreUnavailableError as fault:
                    self._log.warning("enqueued commands wait for PostgreSQL", error=str(fault))
                    await asyncio.sleep(AWAY_S * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        finally:
            self._log.info("enqueued consumer stopped")

    async def _look(self) -> None:
        self._woken.clear()
        rows = await self._store.fetch("take_enqueued", BATCH, TAKEN_FOR_S)
        if rows:
            await self._intake.take([_command(row["id"], row["command"]) for row in rows])
            reach(FaultPoint.ENQUEUED_BEFORE_DROP)
            await self._store.fetch("drop_enqueued", [row["id"] for row in rows])
        if len(rows) < BATCH:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), IDLE_S)


def _command(row_id: UUID, command: str) -> RawCommand:
    # The id that mail.enqueue answered is the delivery's, whatever the command calls itself.
    fields = entry_of_json(command.encode())
    return RawCommand(
        str(row_id), {**fields, b"delivery_id": fields.get(b"delivery_id", str(row_id).encode())}
    )
