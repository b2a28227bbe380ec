"""The bounce dispatcher: each outcome of which a sender is to be told becomes one delivery of source `bounce`.

What is owed is written in the commit of the outcome itself (migration 5). Here it is composed, accepted under the key of what
is owed, and only then dropped: whoever dies in between leaves it to another, who is answered by the first one's delivery. So
there is exactly one bounce for each outcome. It goes the ordinary way, with the null reverse-path, and none answers it.
"""

import asyncio
import random
import traceback
from typing import Final

import structlog

from mailkeep.core.bounce import OwedBounce, compose
from mailkeep.core.command import CommandError, FailureCode, check_recipients
from mailkeep.core.delivery import DeliveryClass, Guarantee
from mailkeep.faults import FaultPoint, reach
from mailkeep.intake.accept import Accept
from mailkeep.store.bounces import OwedBounces
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.group_commit import OverloadedError

BATCH: Final = 50
"""Bounces composed at a time, their headers in memory, and stored together."""
IDLE_S: Final = 2.0
"""How long an outcome may wait for its bounce. Its commit wakes nobody: commits that notify wait for each other."""


class BounceDispatcher:
    """Turns what is owed into deliveries. `run` until cancelled."""

    def __init__(self, owed: OwedBounces, accept: Accept, *, idle_s: float = IDLE_S) -> None:
        self._owed = owed
        self._accept = accept
        self._idle_s = idle_s
        self._log = structlog.get_logger("bounce_dispatcher")

    async def run(self) -> None:
        """Dispatch until cancelled."""
        self._log.info("bounce dispatcher started")
        away = False
        try:
            while True:
                try:
                    taken = await self._look()
                    if away:
                        self._log.info("bounces are sent again")
                    away = False
                    if taken == BATCH:
                        continue
                except (StoreUnavailableError, OverloadedError) as fault:
                    if not away:
                        self._log.warning("bounces wait for PostgreSQL", error=str(fault))
                    away = True
                await asyncio.sleep(self._idle_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
        finally:
            self._log.info("bounce dispatcher stopped")

    async def _look(self) -> int:
        owed = await self._owed.take(BATCH)
        faults = await asyncio.gather(*map(self._dispatch, owed))
        if owed:
            reach(FaultPoint.BOUNCE_BEFORE_SETTLED)
            await self._owed.settle(
                [bounce.id for bounce, fault in zip(owed, faults, strict=True) if fault is None]
            )
        for fault in filter(None, faults):
            raise fault
        return len(owed)

    async def _dispatch(self, bounce: OwedBounce) -> StoreUnavailableError | OverloadedError | None:
        """Make the delivery of one bounce; answers why it stays owed, if it does."""
        try:
            await self._send(bounce)
        except (StoreUnavailableError, OverloadedError) as fault:
            return fault
        except Exception as fault:  # noqa: BLE001 - a boundary: one that trips us is given up, the others go on
            self._give_up(bounce, fault)
        return None

    async def _send(self, bounce: OwedBounce) -> None:
        if not bounce.can_be_told:
            return
        policy = self._accept.policy
        guarantee = policy.rules.guarantees.get(DeliveryClass.RELAY, Guarantee.AT_LEAST_ONCE)
        command = compose(bounce, policy.sender.domain, guarantee)
        check_recipients(command, policy.rules)
        try:
            await self._accept.accept(command, key=str(bounce.id), traceparent=bounce.traceparent)
        except CommandError as fault:
            # Under another configuration it was composed with other words, and is on its way.
            if fault.code is not FailureCode.IDEMPOTENCY_CONFLICT:
                raise

    def _give_up(self, bounce: OwedBounce, fault: Exception) -> None:
        # Its words may hold what the mail held; its type and place do not.
        place = traceback.extract_tb(fault.__traceback__)[-1]
        self._log.error(
            "a bounce could not be made",
            delivery_id=str(bounce.delivery_id),
            error=type(fault).__name__,
            at=f"{place.filename}:{place.lineno}",
        )
