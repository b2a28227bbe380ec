"""Commands that nobody waits for an answer to: from the stream and from SQL, each to a delivery or a malformed record.

The one meaning of a command is `accept`'s; here is only what happens to those it refuses.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import structlog

from mailkeep.core.command import CommandError, parse_delivery_id, parse_request
from mailkeep.core.malformed import Intake, Malformed, malformed
from mailkeep.intake.accept import Accept, Accepted
from mailkeep.intake.stream_entry import REQUIRED, REQUIRED_OF_STREAM, parse_entry
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.group_commit import OverloadedError
from mailkeep.store.malformed import MalformedCommands

SLICE: Final = 16
"""Commands worked on before the event loop gets a turn: a login code waits for a few milliseconds at most."""
_REQUIRED: Final = {Intake.STREAM: REQUIRED_OF_STREAM, Intake.SQL: REQUIRED}


class RawCommand(msgspec.Struct, frozen=True):
    """One command as it came: `entry_id` names it in its intake."""

    entry_id: str
    fields: Mapping[bytes, bytes]


class Taken(msgspec.Struct, frozen=True):
    """What became of a batch."""

    deliveries: int = 0
    duplicates: int = 0
    malformed: int = 0


class CommandIntake:
    """Takes batches of commands; every command of a batch is accounted for when `take` returns."""

    def __init__(
        self, intake: Intake, accept: Accept, records: MalformedCommands, now_s: Callable[[], float]
    ) -> None:
        self._intake = intake
        self._accept = accept
        self._records = records
        self._now_s = now_s
        self._log = structlog.get_logger("command_intake")

    async def take(self, commands: Sequence[RawCommand]) -> Taken:
        """Make each command a delivery, a duplicate or a malformed record, all of it durable.

        Raises `StoreUnavailableError`: then the whole batch is to be taken again, which doubles nothing.
        """
        answers: list[Accepted | Malformed] = []
        for begin in range(0, len(commands), SLICE):
            slice_ = commands[begin : begin + SLICE]
            found = await asyncio.gather(*map(self.take_one, slice_), return_exceptions=True)
            for answer in found:
                if isinstance(answer, BaseException):
                    raise answer
                answers.append(answer)
        refused = [answer for answer in answers if isinstance(answer, Malformed)]
        if refused:
            await self._records.keep(refused, self._now_s())
            self._say(refused)
        duplicates = sum(answer.replayed for answer in answers if isinstance(answer, Accepted))
        return Taken(len(answers) - len(refused) - duplicates, duplicates, len(refused))

    async def take_one(self, command: RawCommand) -> Accepted | Malformed:
        """Make `command` a delivery or find why it can't be one. Raises `StoreUnavailableError`."""
        try:
            limits = self._accept.policy.rules.limits
            request = parse_entry(command.fields, 2 * limits.message_bytes, _REQUIRED[self._intake])
            delivery_id = (
                parse_delivery_id(request.delivery_id, self._now_s()) if request.delivery_id else None
            )
            return await self._accept.accept(
                parse_request(request, self._accept.policy.rules),
                key=request.idempotency_key,
                delivery_id=delivery_id,
                traceparent=request.traceparent,
            )
        except CommandError as fault:
            return malformed(self._intake, command.entry_id, command.fields, fault)
        except OverloadedError as fault:
            raise StoreUnavailableError(str(fault), in_doubt=False) from fault

    def _say(self, refused: Sequence[Malformed]) -> None:
        for record in refused:
            known = {
                "entry_id": record.entry_id,
                "failure_code": record.failure_code,
                "field": record.field,
                "delivery_id": record.delivery_id,
                "source": record.source,
            }
            if self._intake is Intake.STREAM:
                self._log.warning("stream command rejected", **known)
            else:
                self._log.warning("sql command rejected", **known)
