"""The attempt scheduler: finds what is due in the table and hands it to the workers of this replica.

It sleeps until the next delivery is due, until PostgreSQL notifies that something became due, or until the workers have
room again; when nothing waits it looks once in `IDLE_S`. It is also where claims that this replica holds in the table but
not in memory (a commit whose answer was lost) are given back: here no claim of its own can be under way meanwhile.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

import structlog

from mailkeep.core.delivery import DeliveryClass, DeliveryStatus
from mailkeep.core.queue import Claim, ClaimKey, Suppressed
from mailkeep.dispatch.replica import Replica
from mailkeep.dispatch.right_of_way import RightOfWay
from mailkeep.dispatch.worker import AttemptWorkerPool
from mailkeep.faults import FaultPoint, reach
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.postgres import Store
from mailkeep.telemetry import metrics

IDLE_S: Final = 2.0
"""The longest it sleeps: a lost notification costs no more than this."""
UNCLAIMABLE_S: Final = 0.25
"""Between two looks while something is due that can't be claimed: another replica has locked it, or it is a suspect."""
AWAY_S: Final = 1.0
"""Between two looks while PostgreSQL is away."""
HOUSEKEEPING_S: Final = 1.0
"""Between two looks for expired deliveries, suspects and forgotten claims."""
ANNOUNCE_S: Final = 0.2
"""Between two notifications to other replicas, however much is accepted."""
FORGOTTEN_AFTER_S: Final = 10.0
"""Age of a claim that is in the table but not in memory before it is given back."""
CLAIMS: Final = 100
"""Claims of one look: taking them in holds the event loop for a millisecond; while there are more the next look is at once."""


class AttemptScheduler:
    """Claims due deliveries for one worker pool. `run` until cancelled."""

    def __init__(
        self, *, store: Store, replica: Replica, pool: AttemptWorkerPool, right_of_way: RightOfWay
    ) -> None:
        self._store = store
        self._replica = replica
        self._pool = pool
        self._right_of_way = right_of_way
        self._woken = asyncio.Event()
        self._housekept_at = -float("inf")
        self._suspect: UUID | None = None
        self._announced_at = -float("inf")
        self._announcing: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("attempt_scheduler")

    def wake(self) -> None:
        """Look again soon: something became due."""
        self._woken.set()

    def probe(self) -> None:
        """Look again soon, and at next hops that are out, too."""
        for breaker in self._pool.breakers.values():
            breaker.probe_now()
        self.wake()

    def announce(self) -> None:
        """Look again soon, and tell the other replicas to: this one had no room for what it accepted."""
        self.wake()
        if time.monotonic() - self._announced_at < ANNOUNCE_S or self._announcing is not None:
            return
        self._announced_at = time.monotonic()
        self._announcing = asyncio.create_task(self._notify())

    async def _notify(self) -> None:
        try:
            await self._store.notify_due()
        except StoreUnavailableError:
            self._log.debug("could not announce due mail; others find it by themselves")
        finally:
            self._announcing = None

    async def run(self) -> None:
        """Schedule until cancelled."""
        self._log.info("attempt scheduler started")
        try:
            while True:
                try:
                    await self._look()
                except StoreUnavailableError as fault:
                    self._log.warning("attempt scheduler waits for PostgreSQL", error=str(fault))
                    await asyncio.sleep(AWAY_S)
        finally:
            self._log.info("attempt scheduler stopped")

    async def _look(self) -> None:
        self._woken.clear()
        self._pool.has_room.clear()
        if time.monotonic() - self._housekept_at >= HOUSEKEEPING_S:
            await self._housekeep()
            self._housekept_at = time.monotonic()
        async with self._right_of_way.in_turn():
            wanted = self._pool.wanted()
            at_most = min(self._pool.free_places, self._right_of_way.rows_at_most(CLAIMS))
            claims = await self._store.claim_due(self._replica.id, wanted, at_most) if wanted else []
        if claims:
            reach(FaultPoint.CLAIM_AFTER_COMMIT)
            await self._hand_over(claims)
        if not may_be_more(claims, wanted, at_most):
            await self._sleep(await self._pause_s([(hop, name) for hop, name, _ in wanted]))

    async def _hand_over(self, claims: Sequence[Claim]) -> None:
        """Give the workers what may be sent: since it was accepted, the suppression list may have grown."""
        suppressed = {left.id: left for left in await self._store.suppress(claims)}
        _count(claims, suppressed)
        for claim in claims:
            left = suppressed.get(claim.id)
            if left is not None:
                claim.recipient_states = left.recipient_states
                self._log.info(
                    "recipients are suppressed", delivery_id=str(claim.id), delivery_status=left.status
                )
            if left is None or left.status is DeliveryStatus.SENDING:
                self._pool.hand_over(claim)

    async def _pause_s(self, wanted: list[tuple[str, DeliveryClass]]) -> float:
        probes = [breaker.wait_s() for breaker in self._pool.breakers.values() if breaker.wait_s()]
        due_s = await self._store.next_due_s(wanted, IDLE_S) if wanted else None
        return min([IDLE_S, *probes, *([max(due_s, UNCLAIMABLE_S)] if due_s is not None else [])])

    async def _sleep(self, pause_s: float) -> None:
        waiters = [asyncio.create_task(self._woken.wait()), asyncio.create_task(self._pool.has_room.wait())]
        try:
            await asyncio.wait(waiters, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()

    async def _housekeep(self) -> None:
        while await self._store.expire_due():
            pass
        wanted = self._pool.wanted()
        if wanted and self._suspect not in self._pool.held:
            suspect = await self._store.claim_suspect(self._replica.id, sorted({hop for hop, _, _ in wanted}))
            if suspect is not None:
                self._suspect = suspect.id
                await self._hand_over([suspect])
        await self._give_back_forgotten(FORGOTTEN_AFTER_S)

    async def give_back_rest(self) -> None:
        """Give back what was claimed as `run` was cancelled and reached no worker. Call once nothing claims any more."""
        try:
            await self._give_back_forgotten(0.0)
        except StoreUnavailableError:
            self._log.warning("claims without a holder could not be given back; they are taken over")

    async def _give_back_forgotten(self, older_than_s: float) -> None:
        replica_id = self._replica.id
        for delivery_id, token in (await self._store.own_claims(replica_id, older_than_s)).items():
            if delivery_id not in self._pool.held:
                self._log.warning("a claim without a holder is given back", delivery_id=str(delivery_id))
                await self._store.hand_back([ClaimKey(replica_id, delivery_id, token)])


def may_be_more(
    claims: Sequence[Claim], wanted: Sequence[tuple[str, DeliveryClass, int]], at_most: int
) -> bool:
    """Whether something is due beyond `claims`, of which `at_most` in all and a bound for each of `wanted` were asked for."""
    claimed = Counter((claim.next_hop, claim.delivery_class) for claim in claims)
    return bool(claims) and (
        len(claims) >= at_most or any(claimed[hop, name] >= bound for hop, name, bound in wanted)
    )


def _count(claims: Sequence[Claim], suppressed: Mapping[UUID, Suppressed]) -> None:
    ended = [
        (claim, suppressed[claim.id].status)
        for claim in claims
        if claim.id in suppressed and suppressed[claim.id].status is not DeliveryStatus.SENDING
    ]
    metrics.count(metrics.TRANSITIONS, ((DeliveryStatus.SENDING, status) for _, status in ended))
    metrics.count(
        metrics.SUPPRESSED,
        ((claim.source,) for claim, status in ended if status is DeliveryStatus.SUPPRESSED),
    )
