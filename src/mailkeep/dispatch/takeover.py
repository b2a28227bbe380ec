"""The takeover worker: mail of replicas that fell silent, or left with claims, goes on with those that live."""

import asyncio

import structlog

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.dispatch.replica import Replica
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.postgres import Store
from mailkeep.telemetry import metrics


class TakeoverWorker:
    """Declares silent replicas lost and takes their claims over. Every replica runs one; `run` until cancelled."""

    def __init__(self, *, store: Store, replica: Replica, interval_s: float, ttl_s: float) -> None:
        self._store = store
        self._replica = replica
        self._interval_s = interval_s
        self._ttl_s = ttl_s
        self._log = structlog.get_logger("takeover_worker")

    async def run(self) -> None:
        """Look for lost replicas every `interval_s` until cancelled."""
        while True:
            try:
                await self._look()
            except StoreUnavailableError as fault:
                self._log.warning("takeover waits for PostgreSQL", error=str(fault))
            await asyncio.sleep(self._interval_s)

    async def _look(self) -> None:
        # A replica that cannot tell whether it is alive itself does not judge others. Whom others have judged, or who said
        # goodbye, is no matter of judgement: also after an outage of PostgreSQL their mail goes on at once.
        if self._replica.may_judge:
            for replica_id in await self._store.mark_lost(self._ttl_s):
                self._log.error("replica lost", lost_id=str(replica_id))
        while self._replica.may_send and (statuses := await self._store.take_over()):
            metrics.count(metrics.TAKEOVERS, (() for _ in statuses))
            metrics.count(
                metrics.TRANSITIONS, ((DeliveryStatus.SENDING, status) for status in statuses.values())
            )
            poisoned = [str(key) for key, status in statuses.items() if status is DeliveryStatus.DEAD_LETTER]
            metrics.count(metrics.DEAD_LETTERS, (("poison",) for _ in poisoned))
            self._log.warning("claims taken over", count=len(statuses), poisoned=poisoned)
            await self._store.notify_due()
