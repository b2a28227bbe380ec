"""Commands that nobody waits for an answer to: from the stream and from SQL, each to a delivery or a malformed record.

The one meaning of a command is `accept`'s; here is only what happens to those it refuses. A batch is prepared command by
command; while one part of it is being committed the next is prepared. Login codes have the right of way.
"""

import asyncio
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final
from uuid import UUID

import msgspec
import structlog
from opentelemetry.trace import Span

from mailkeep.aside import LARGE_BYTES, aside
from mailkeep.core.command import (
    ID_DRIFT_S,
    Command,
    CommandError,
    FailureCode,
    parse_delivery_id,
    parse_request,
)
from mailkeep.core.ids import id_text
from mailkeep.core.malformed import Intake, Malformed, malformed
from mailkeep.intake.accept import Accept, Accepted, Prepared
from mailkeep.intake.stream_entry import REQUIRED, REQUIRED_OF_STREAM, parse_entry
from mailkeep.store.errors import StoreError, StoreUnavailableError
from mailkeep.store.group_commit import OverloadedError
from mailkeep.store.malformed import MalformedCommands
from mailkeep.store.postgres import Store, Stored
from mailkeep.telemetry import metrics, tracing

SLICE: Final = 32
"""Commands read, or prepared, before the event loop gets a turn: a millisecond or two, which a login code may have to wait.
One after the other through one step costs a fifth less than each through all steps: the processor keeps what a step needs."""
SLICE_AMONG_CODES: Final = 8
"""The same while login codes are about: they wait a quarter as long."""
PART: Final = 64
"""Commands of a batch after which their commit begins: it is under way while the next ones are prepared."""
MAX_AGE_S: Final = 7 * 86_400.0
"""How long a command may have waited (a stop of the service, a stream read again): as long as keys are kept at least.
Beyond it nobody could tell any more whether it was sent before."""
_DAYS_BEHIND: Final = 8
"""Partitions for ids of that age: the days that seven times 24 hours touch."""
_REQUIRED: Final = {Intake.STREAM: REQUIRED_OF_STREAM, Intake.SQL: REQUIRED}


class RawCommand(msgspec.Struct, frozen=True):
    """One command as it came. `entry_id` names it in its intake; `fault` was found before its fields could be looked at.

    `delivery_id` is what its producer was answered, where that was before anybody looked at it.
    """

    intake: Intake
    entry_id: str
    fields: Mapping[bytes, bytes]
    fault: CommandError | None = None
    delivery_id: UUID | None = None

    @property
    def is_large(self) -> bool:
        """Whether it is to be worked on aside."""
        return sum(map(len, self.fields.values())) > LARGE_BYTES

    def refused(self, fault: CommandError) -> Malformed:
        """Return the record of this command, which `fault` refused."""
        return malformed(self.intake, self.entry_id, self.fields, fault, self.delivery_id)


class _Asked(msgspec.Struct, frozen=True, gc=False):
    """A valid command, with what came beside it."""

    raw: RawCommand
    delivery_id: UUID
    key: str
    command: Command
    traceparent: str | None


class _Undeliverable(msgspec.Struct, frozen=True):
    """A valid command that can't be delivered as things are now; it may have been accepted when they were otherwise."""

    command: Command
    key: str
    fault: CommandError


_Ready = Prepared | _Undeliverable | Malformed


class CommandIntake:
    """Takes batches of commands; every command of a batch is accounted for when `take` returns."""

    def __init__(self, accept: Accept, store: Store, now_s: Callable[[], float]) -> None:
        self._accept = accept
        self._store = store
        self._records = MalformedCommands(store)
        self._now_s = now_s
        self._log = structlog.get_logger("command_intake")

    async def take(self, commands: Sequence[RawCommand]) -> list[Accepted | Malformed]:
        """Make each command a delivery, a duplicate or a malformed record, all of it durable; answers in order.

        Raises `StoreUnavailableError`: then the whole batch is to be taken again, which doubles nothing.
        """
        with tracing.batch_span("take commands") as span:
            return await self._take(commands, span)

    async def _take(self, commands: Sequence[RawCommand], span: Span) -> list[Accepted | Malformed]:
        prepared: list[_Ready] = []
        committing: list[asyncio.Future[Stored]] = []
        own = tracing.traceparent_of(span)
        try:
            for start in range(0, len(commands), PART):
                part = await self._ready(commands[start : start + PART], own)
                committing += await self._commit([ready for ready in part if isinstance(ready, Prepared)])
                prepared += part
            given = (ready.new.traceparent for ready in prepared if isinstance(ready, Prepared))
            tracing.link(span, (traceparent for traceparent in given if traceparent != own))
            stored = iter(await _settled(committing))
        finally:
            for commit in committing:
                commit.cancel()  # after a stop nobody asks for it any more; it is made all the same
        answers = [
            await self._answer(command, ready, stored)
            for command, ready in zip(commands, prepared, strict=True)
        ]
        refused = [answer for answer in answers if isinstance(answer, Malformed)]
        if refused:
            await self._records.keep(refused, self._now_s())
            self._say(refused)
        return answers

    async def _ready(self, commands: Sequence[RawCommand], traceparent: str | None) -> list[_Ready]:
        """Prepare commands, a slice of them in each turn of the event loop; `traceparent` is for those without their own."""
        ready: list[_Ready] = []
        size = SLICE_AMONG_CODES if self._accept.right_of_way.codes_are_about else SLICE
        for start in range(0, len(commands), size):
            await self._accept.right_of_way.give_way()
            asked = [
                await aside(self._read, command, traceparent)
                if command.is_large
                else self._read(command, traceparent)
                for command in commands[start : start + size]
            ]
            await self._accept.right_of_way.give_way()
            for one in asked:
                if not isinstance(one, _Asked):
                    ready.append(one)
                elif one.command.size_bytes > LARGE_BYTES:
                    ready.append(await self._prepare_aside(one))
                else:
                    ready.append(self._prepare(one))
        return ready

    def _read(self, raw: RawCommand, traceparent: str | None) -> _Asked | Malformed:
        try:
            if raw.fault is not None:
                return raw.refused(raw.fault)
            rules = self._accept.policy.rules
            request = parse_entry(raw.fields, 2 * rules.limits.message_bytes, _REQUIRED[raw.intake])
            assert request.delivery_id is not None  # the consumer of SQL commands gives it
            delivery_id = parse_delivery_id(request.delivery_id, self._now_s(), MAX_AGE_S)
            return _Asked(
                raw,
                delivery_id,
                request.idempotency_key or id_text(delivery_id),
                parse_request(request, rules),
                request.traceparent or traceparent,
            )
        except CommandError as fault:
            return raw.refused(fault)
        except Exception as fault:  # noqa: BLE001 - a boundary: a command that trips us is malformed, the others go on
            return self._tripped(raw, fault)

    def _prepare(self, asked: _Asked) -> _Ready:
        try:
            return self._accept.prepare(
                asked.command, key=asked.key, delivery_id=asked.delivery_id, traceparent=asked.traceparent
            )
        except Exception as fault:  # noqa: BLE001 - as above
            return self._not_ready(asked, fault)

    async def _prepare_aside(self, asked: _Asked) -> _Ready:
        try:
            return await self._accept.prepare_aside(
                asked.command, key=asked.key, delivery_id=asked.delivery_id, traceparent=asked.traceparent
            )
        except Exception as fault:  # noqa: BLE001 - as above
            return self._not_ready(asked, fault)

    def _not_ready(self, asked: _Asked, fault: Exception) -> _Undeliverable | Malformed:
        if isinstance(fault, CommandError):
            return _Undeliverable(asked.command, asked.key, fault)
        return self._tripped(asked.raw, fault)

    async def _commit(self, prepared: Sequence[Prepared]) -> "list[asyncio.Future[Stored]]":
        """Begin to store all; answers, later, what `Prepared.accepted` reads, or what the commit raised."""
        oldest_s = min(((ready.new.id.int >> 80) / 1000 for ready in prepared), default=self._now_s())
        if oldest_s < self._now_s() - ID_DRIFT_S:
            await self._store.ensure_partitions(_DAYS_BEHIND)
        try:
            await self._accept.sign(prepared)
            return [self._accept.store(ready) for ready in prepared]
        except OverloadedError as fault:
            raise StoreUnavailableError(str(fault), in_doubt=False) from fault

    async def _answer(
        self,
        command: RawCommand,
        ready: _Ready,
        stored: "Iterator[Stored | BaseException]",
    ) -> Accepted | Malformed:
        try:
            match ready:
                case Malformed():
                    return ready
                case _Undeliverable(command=parsed, key=key, fault=fault):
                    return await self._accept.find(parsed, key) or command.refused(fault)
                case Prepared():
                    answer = next(stored)
                    if isinstance(answer, BaseException) and not isinstance(answer, StoreError):
                        raise answer
                    return ready.accepted(answer)
        except CommandError as fault:
            return command.refused(fault)

    def _tripped(self, raw: RawCommand, fault: Exception) -> Malformed:
        # Its words may hold what the command held; its type and place do not.
        place = traceback.extract_tb(fault.__traceback__)[-1]
        self._log.error(
            "command met a fault",
            entry_id=raw.entry_id,
            error=type(fault).__name__,
            at=f"{place.filename}:{place.lineno}",
        )
        why = f"met a fault of Mailkeep: {type(fault).__name__}"
        return raw.refused(CommandError(FailureCode.INVALID_FIELD, "", why))

    def _say(self, refused: Sequence[Malformed]) -> None:
        metrics.count(
            metrics.MALFORMED,
            ((record.failure_code,) for record in refused if record.intake is Intake.STREAM),
        )
        for record in refused:
            log = self._log.bind(
                entry_id=record.entry_id,
                failure_code=record.failure_code,
                field=record.field,
                delivery_id=record.delivery_id,
                source=record.source,
            )
            if record.failure_code == FailureCode.RESERVED_DOMAIN:
                log.warning("command for a reserved domain refused", at=record.intake)
                metrics.count(metrics.RESERVED_DOMAIN, ((record.intake,),))
            if record.intake is Intake.STREAM:
                log.warning("stream command rejected")
            else:
                log.warning("sql command rejected")


async def _settled(committing: "Sequence[asyncio.Future[Stored]]") -> list[Stored | BaseException]:
    """Return what came of each commit, in order. Those of one commit are done together, so that one is waited for."""
    settled: list[Stored | BaseException] = []
    for commit in committing:
        try:
            settled.append(await commit)
        except Exception as fault:  # noqa: BLE001 - whoever reads the answer raises it
            settled.append(fault)
    return settled
