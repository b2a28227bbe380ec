"""The command consumer: delivery commands from the Redis Stream `mail:delivery_commands`.

Every replica is a consumer of one group, so that they share the stream and its offset persists in Redis. An entry is
acknowledged only after PostgreSQL committed what it became: a delivery, a duplicate, or a malformed record. Entries that a
dead consumer left are claimed. Redis holds no state of a message: losing it replays commands, and their keys make that
harmless. While PostgreSQL is away nothing is read and nothing acknowledged.

Acknowledged entries stay in the stream; trimming it is its producers' business, and what they trim too early is told.
"""

import asyncio
import random
import time
import traceback
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import redis.exceptions
import structlog
from redis.asyncio import Redis

from mailkeep.core.command import CommandError, FailureCode
from mailkeep.core.malformed import Intake
from mailkeep.intake.commands import CommandIntake, RawCommand
from mailkeep.intake.redis_client import Connect
from mailkeep.store.errors import StoreUnavailableError

STREAM: Final = "mail:delivery_commands"
GROUP: Final = "mailkeep"
BATCH: Final = 256
"""Entries of one read: enough for their commits to go on while the rest is prepared, few enough to be taken again after a crash."""
FIRST_BATCH: Final = 8
"""Of a connection: how large the entries are is only known once some were read."""
BATCH_BYTES: Final = 8 * 1024 * 1024
"""Where entries are large, fewer are read at a time; one alone has no bound but Redis's own."""
BLOCK_MS: Final = 2000
"""The longest one read waits: a dead connection is noticed."""
CLAIM_IDLE_MS: Final = 15_000
"""An entry that its consumer left unacknowledged for so long is another's to take."""
LOOK_EVERY_S: Final = 5.0
"""How often entries of dead consumers, and losses, are looked for."""
FORGET_IDLE_MS: Final = 24 * 3_600_000
"""A consumer that has nothing and was silent for so long is gone; each start of a replica makes a new one."""
RETRY_FIRST_S: Final = 0.2
RETRY_LAST_S: Final = 5.0

_OWN: Final = "0"  # what was given to this consumer already and is not acknowledged
_NEW: Final = ">"


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry of the stream: names and values in turn, None where it was trimmed after somebody read it."""

    id: bytes
    flat: list[bytes] | None

    @property
    def size_bytes(self) -> int:
        """The size of its names and values."""
        return sum(map(len, self.flat or ()))

    def command(self) -> RawCommand:
        """Return the entry as a command."""
        flat = self.flat or []
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        fault = None
        if 2 * len(fields) != len(flat):
            fault = CommandError(FailureCode.INVALID_FIELD, "", "has a field twice")
        return RawCommand(Intake.STREAM, self.id.decode(), fields, fault)


class CommandConsumer:
    """Takes commands from the stream under a `name` that no other consumer has. `run` until cancelled."""

    def __init__(self, connect: Connect, intake: CommandIntake, name: str) -> None:
        self._connect = connect
        self._intake = intake
        self._name = name
        self._complained = ""
        self._trimmed = 0
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
                except Exception as fault:  # noqa: BLE001 - a boundary: the entries stay pending and are taken again
                    self._trip(fault)
                steady = time.monotonic() - began > RETRY_LAST_S
                wait_s = RETRY_FIRST_S if steady else min(wait_s * 2, RETRY_LAST_S)
                await _pause(wait_s)
        finally:
            self._log.info("command consumer stopped")

    async def _consume(self, client: "Redis") -> None:
        for name in ("XREADGROUP", "XAUTOCLAIM"):
            client.set_response_callback(name, _as_it_is)
        await self._ensure_group(client)
        await self._forget_consumers(client)
        position, count, looked_at = _OWN, FIRST_BATCH, -float("inf")
        while True:
            entries: list[Entry] = []
            if time.monotonic() - looked_at > LOOK_EVERY_S:
                await self._look_for_losses(client)
                entries = await self._abandoned(client, count)
                looked_at = looked_at if entries else time.monotonic()
            if not entries:
                entries = await self._read(client, position, count)
                position = position if entries else _NEW
            self._read_again()
            if entries:
                await self._take(client, entries)
                size = sum(entry.size_bytes for entry in entries)
                count = min(BATCH, 2 * count, max(1, BATCH_BYTES * len(entries) // max(size, 1)))

    async def _take(self, client: "Redis", entries: Sequence[Entry]) -> None:
        commands = [entry.command() for entry in entries if entry.flat is not None]
        self._say_trimmed(len(entries) - len(commands))
        wait_s = RETRY_FIRST_S
        while True:
            # The entries stay pending while PostgreSQL is away; taking them twice is harmless.
            try:
                await self._intake.take(commands)
                break
            except StoreUnavailableError as fault:
                if wait_s == RETRY_FIRST_S:
                    self._log.warning(
                        "stream commands wait for PostgreSQL", count=len(commands), error=str(fault)
                    )
                await _pause(wait_s)
                wait_s = min(wait_s * 2, RETRY_LAST_S)
        await client.xack(STREAM, GROUP, *[entry.id for entry in entries])
        if wait_s > RETRY_FIRST_S:
            self._log.info("stream commands are taken again")

    async def _read(self, client: "Redis", position: str, count: int) -> list[Entry]:
        answer: Any = await client.xreadgroup(
            GROUP, self._name, {STREAM: position}, count=count, block=BLOCK_MS
        )
        return [Entry(entry_id, flat) for _stream, entries in answer or () for entry_id, flat in entries]

    async def _abandoned(self, client: "Redis", count: int) -> list[Entry]:
        answer: Any = await client.xautoclaim(STREAM, GROUP, self._name, CLAIM_IDLE_MS, count=count)
        _cursor, entries, *gone = answer
        self._say_trimmed(len(gone[0]) if gone else 0)
        return [Entry(*entry) for entry in entries if entry is not None]  # None: trimmed, in Redis 6

    # -- the group ---------------------------------------------------------------------------------------------

    async def _ensure_group(self, client: "Redis") -> None:
        try:
            await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        except redis.exceptions.ResponseError as fault:
            if not str(fault).startswith("BUSYGROUP"):
                raise
        else:
            self._log.info("stream is read from its beginning")

    async def _forget_consumers(self, client: "Redis") -> None:
        for consumer in await client.xinfo_consumers(STREAM, GROUP):
            if not consumer["pending"] and consumer["idle"] > FORGET_IDLE_MS:
                await client.xgroup_delconsumer(STREAM, GROUP, consumer["name"])

    async def _look_for_losses(self, client: "Redis") -> None:
        """Say so when more entries are gone from the stream than the group has read; Redis counts both since 7.0."""
        stream: Any = await client.xinfo_stream(STREAM)
        read = [
            group.get("entries-read")
            for group in await client.xinfo_groups(STREAM)
            if group["name"] == GROUP.encode()
        ]
        if read and read[0] is not None:
            unread = stream["entries-added"] - stream["length"] - read[0]
            self._say_trimmed(max(unread - self._trimmed, 0))
            self._trimmed = max(unread, 0)

    # -- words -------------------------------------------------------------------------------------------------

    def _say_trimmed(self, count: int) -> None:
        if count:
            self._log.error("stream entries were trimmed before they were taken", count=count)

    def _read_again(self) -> None:
        if self._complained:
            self._complained = ""
            self._log.info("stream is read again")

    def _complain(self, fault: BaseException) -> None:
        kind = f"{type(fault).__name__}: {_words(fault)[:200]}"
        if kind != self._complained:
            self._complained = kind
            self._log.warning("stream can't be read; trying again", error=kind)

    def _trip(self, fault: Exception) -> None:
        # Its words may hold what a command held; its type and place do not.
        place = traceback.extract_tb(fault.__traceback__)[-1]
        self._log.error(
            "command consumer met a fault; trying again",
            error=type(fault).__name__,
            at=f"{place.filename}:{place.lineno}",
        )


def _as_it_is(response: Any, **_options: Any) -> Any:  # noqa: ANN401 - the client's answers are untyped
    return response


def _words(fault: BaseException) -> str:
    if isinstance(
        fault, redis.exceptions.AskError
    ):  # MOVED is one of them; its own words are a number and an address
        return (
            f"the cluster has the stream at {fault.host}:{fault.port}, which MAIL_REDIS_MASTER_ADDR must name"
        )
    return str(fault)


async def _pause(wait_s: float) -> None:
    await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
