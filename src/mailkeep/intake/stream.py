"""The command consumer: delivery commands from the Redis Stream `mail:delivery_commands`.

Every replica is a consumer of one group, so that they share the stream and its offset persists in Redis. An entry is
acknowledged only after PostgreSQL committed what it became: a delivery, a duplicate, or a malformed record. Entries that a
dead consumer left are claimed. Redis holds no state of a message: losing it replays commands, and their keys make that
harmless. While PostgreSQL is away nothing is read and nothing acknowledged.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Final

import redis.exceptions
import structlog
from redis.asyncio import Redis

from mailkeep.faults import FaultPoint, reach
from mailkeep.intake.commands import CommandIntake, RawCommand
from mailkeep.store.errors import StoreUnavailableError

STREAM: Final = "mail:delivery_commands"
GROUP: Final = "mailkeep"
BATCH: Final = 128
"""Entries a commit: enough to make commits cheap, few enough not to hold the event loop from login codes."""
BLOCK_MS: Final = 2000
"""The longest one read waits: a stop is prompt, and a dead connection is noticed."""
CLAIM_IDLE_MS: Final = 15_000
"""An entry that its consumer left unacknowledged for so long is another's to take."""
CLAIM_EVERY_S: Final = 5.0
RETRY_FIRST_S: Final = 0.2
RETRY_LAST_S: Final = 5.0

Entry = tuple[bytes, dict[bytes, bytes]]
Connect = Callable[[], "Redis"]


class CommandConsumer:
    """Takes commands from the stream. `run` until cancelled."""

    def __init__(self, connect: Connect, intake: CommandIntake, name: str) -> None:
        self._connect = connect
        self._intake = intake
        self._name = name
        self._claimed_at = -float("inf")
        self._complained = ""
        self._log = structlog.get_logger("command_consumer")

    async def run(self) -> None:
        """Consume until cancelled, reconnecting for ever."""
        self._log.info("command consumer started")
        wait_s = RETRY_FIRST_S
        try:
            while True:
                began = time.monotonic()
                try:
                    async with self._connect() as client:
                        await self._consume(client)
                except (redis.exceptions.RedisError, OSError) as fault:
                    self._complain(fault)
                wait_s = (
                    RETRY_FIRST_S
                    if time.monotonic() - began > RETRY_LAST_S
                    else min(wait_s * 2, RETRY_LAST_S)
                )
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        finally:
            self._log.info("command consumer stopped")

    async def _consume(self, client: "Redis") -> None:
        await self._ensure_group(client)
        while True:
            entries = await self._abandoned(client) or await self._new(client)
            if self._complained:
                self._complained = ""
                self._log.info("stream is read again")
            if entries:
                await self._take(entries)
                reach(FaultPoint.STREAM_BEFORE_ACK)
                await client.xack(STREAM, GROUP, *[entry_id for entry_id, _ in entries])

    async def _take(self, entries: list[Entry]) -> None:
        # The entries stay pending while PostgreSQL is away; taking them twice is harmless.
        commands = [RawCommand(entry_id.decode(), fields) for entry_id, fields in entries]
        wait_s = RETRY_FIRST_S
        while True:
            try:
                await self._intake.take(commands)
            except StoreUnavailableError as fault:
                self._log.warning(
                    "stream commands wait for PostgreSQL", count=len(commands), error=str(fault)
                )
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
                wait_s = min(wait_s * 2, RETRY_LAST_S)
            else:
                return

    async def _new(self, client: "Redis") -> list[Entry]:
        answer: Any = await client.xreadgroup(GROUP, self._name, {STREAM: ">"}, count=BATCH, block=BLOCK_MS)
        return _entries(answer[0][1]) if answer else []

    async def _abandoned(self, client: "Redis") -> list[Entry]:
        if time.monotonic() - self._claimed_at < CLAIM_EVERY_S:
            return []
        answer: Any = await client.xautoclaim(STREAM, GROUP, self._name, CLAIM_IDLE_MS, count=BATCH)
        entries = _entries(answer[1])
        if not entries:
            self._claimed_at = time.monotonic()
        return entries

    async def _ensure_group(self, client: "Redis") -> None:
        try:
            await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        except redis.exceptions.ResponseError as fault:
            if not str(fault).startswith("BUSYGROUP"):
                raise

    def _complain(self, fault: BaseException) -> None:
        kind = f"{type(fault).__name__}: {str(fault)[:200]}"
        if kind != self._complained:
            self._complained = kind
            self._log.warning("stream can't be read; trying again", error=kind)


def _entries(answer: Any) -> list[Entry]:  # noqa: ANN401 - the client's answers are untyped
    # A trimmed or deleted entry that was still pending comes back without fields.
    return [(entry_id, fields) for entry_id, fields in answer if fields is not None]
