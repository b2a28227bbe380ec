"""The recorder: finished attempts go to the table in batches, each batch one commit.

An attempt is over only when it is recorded. While PostgreSQL is away its results wait here, in memory and bounded by the
claims the worker pool may hold; if the process dies meanwhile, their claims are taken over and the attempts say
`abandoned`. A result whose claim was lost changes nothing.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import msgspec
import structlog

from mailkeep.core.delivery import Certainty, DeliveryStatus
from mailkeep.core.outcome import Outcome
from mailkeep.core.queue import Claim, FinishedAttempt
from mailkeep.core.suppression import USUAL_TTL_S
from mailkeep.dispatch.right_of_way import RightOfWay
from mailkeep.faults import FaultPoint, reach
from mailkeep.store.errors import StoreRefusedError, StoreUnavailableError
from mailkeep.store.group_commit import MAX_BATCH, GroupCommit
from mailkeep.store.postgres import Store
from mailkeep.telemetry import metrics

GATHER_S: Final = 0.004
"""How long results wait for others under load: nobody waits for them but the claims, and they share a commit."""
RETRY_FIRST_S: Final = 0.1
RETRY_LAST_S: Final = 2.0


class Recorder:
    """Writes what became of claims: finished, marked before the dot, handed back; hard bounces suppress for their TTL."""

    def __init__(
        self, store: Store, right_of_way: RightOfWay, *, suppression_ttl_s: float = USUAL_TTL_S
    ) -> None:
        self._store = store
        self._right_of_way = right_of_way
        self._suppression_ttl_s = suppression_ttl_s
        self._finishing = GroupCommit(
            self._write_finished, gather_s=GATHER_S, max_batch=lambda: right_of_way.rows_at_most(MAX_BATCH)
        )
        self._marking = GroupCommit(self._write_marks)
        self._returning = GroupCommit(self._write_returns)
        self._log = structlog.get_logger("recorder")

    async def finish(self, finished: FinishedAttempt) -> DeliveryStatus | None:
        """Record a finished attempt; answers the delivery's new status, or None if the claim was lost."""
        return await self._finishing.submit(finished)

    async def mark_dot(self, claim: Claim) -> bool:
        """Commit the intent to send the final dot. False: the claim was lost or the store is away; do not send it."""
        try:
            return await self._marking.submit(claim)
        except StoreUnavailableError:
            return False

    async def hand_back(self, claim: Claim) -> bool:
        """Give a claim back untouched; False if it was lost meanwhile."""
        return await self._returning.submit(claim)

    async def drain(self) -> None:
        """Wait until everything submitted is written."""
        for lane in (self._marking, self._finishing, self._returning):
            await lane.drain()

    async def _write_finished(self, batch: list[FinishedAttempt]) -> Sequence[DeliveryStatus | None]:
        reach(FaultPoint.FINISH_BEFORE_COMMIT)
        statuses = await self._persist(batch)
        reach(FaultPoint.FINISH_AFTER_COMMIT)
        _count(
            [(finished, statuses[finished.claim.id]) for finished in batch if finished.claim.id in statuses]
        )
        for finished in batch:
            if finished.claim.id not in statuses:
                # Taken over, or an earlier try was committed although its answer was lost: either way not ours.
                self._log.warning(
                    "claim was lost before its attempt was recorded", delivery_id=str(finished.claim.id)
                )
        return [statuses.get(finished.claim.id) for finished in batch]

    async def _persist(self, batch: list[FinishedAttempt]) -> dict[UUID, DeliveryStatus]:
        # The statement is fenced by the claim tokens, so repeating it is safe even when a commit's answer was lost.
        wait_s = RETRY_FIRST_S
        while True:
            try:
                async with self._right_of_way.in_turn():
                    return await self._store.finish(batch, self._suppression_ttl_s)
            except StoreRefusedError:
                return await self._persist_singly(batch)
            except StoreUnavailableError as fault:
                self._log.warning(
                    "attempts wait for PostgreSQL to be recorded", count=len(batch), error=str(fault)
                )
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
            wait_s = min(wait_s * 2, RETRY_LAST_S)

    async def _persist_singly(self, batch: list[FinishedAttempt]) -> dict[UUID, DeliveryStatus]:
        # What PostgreSQL refuses of one attempt harms no other; its own outcome is recorded without its words.
        if len(batch) == 1:
            bare = msgspec.structs.replace(batch[0], outcome=_without_words(batch[0].outcome))
            return await self._store.finish([bare], self._suppression_ttl_s)
        statuses: dict[UUID, DeliveryStatus] = {}
        for finished in batch:
            statuses |= await self._persist([finished])
        return statuses

    async def _write_marks(self, batch: list[Claim]) -> Sequence[bool]:
        marked = await self._store.mark_dot(batch)
        return [claim.id in marked for claim in batch]

    async def _write_returns(self, batch: list[Claim]) -> Sequence[bool]:
        returned = await self._store.hand_back(batch)
        return [claim.id in returned for claim in batch]


def _count(recorded: Sequence[tuple[FinishedAttempt, DeliveryStatus]]) -> None:
    metrics.count(metrics.OUTCOMES, ((finished.outcome.status,) for finished, _ in recorded))
    metrics.count(
        metrics.UNKNOWN, (() for finished, _ in recorded if finished.outcome.certainty is Certainty.UNKNOWN)
    )
    metrics.count(metrics.TRANSITIONS, ((DeliveryStatus.SENDING, status) for _, status in recorded))
    metrics.count(
        metrics.SUPPRESSED,
        ((finished.claim.source,) for finished, status in recorded if status is DeliveryStatus.SUPPRESSED),
    )
    metrics.count(
        metrics.DEAD_LETTERS,
        (
            (finished.decision.dead_letter_cause or "",)
            for finished, status in recorded
            if status is DeliveryStatus.DEAD_LETTER
        ),
    )


def _without_words(outcome: Outcome) -> Outcome:
    recipients = tuple(
        msgspec.structs.replace(recipient, text="", enhanced=None) for recipient in outcome.recipients
    )
    return msgspec.structs.replace(outcome, text="", enhanced=None, steps=(), recipients=recipients)
