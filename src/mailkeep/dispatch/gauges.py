"""The gauges: what a replica reports of the queue and of itself, read now and then where metrics are exported.

Exporters ask from threads of their own, at their own pace; they get what was read last, without a wait.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from mailkeep.core.delivery import DeliveryClass
from mailkeep.dispatch.breaker import Breaker, BreakerState
from mailkeep.dispatch.replica import Replica
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.postgres import Store
from mailkeep.telemetry import metrics

INTERVAL_S: Final = 15.0
"""Between two looks at the queue, at least."""
REST: Final = 100
"""Between two looks, as a multiple of what the last one took: counting a million waiting rows takes PostgreSQL a fifth of a second,
and a figure that is half a minute old tells as much of them."""
LONGEST_S: Final = 60.0
"""And never more than this, however long one took."""

MAX_COUNTED: Final = 10_000
"""Events of a webhook that are counted: more say the same, and counting is not to cost more than telling them."""


class GaugeReader:
    """Reads what the gauges show, of `webhooks` by name. `run` until cancelled."""

    def __init__(
        self, store: Store, replica: Replica, breakers: Mapping[str, Breaker], webhooks: Sequence[str] = ()
    ) -> None:
        self._store = store
        self._webhooks = list(webhooks)
        self._depths: dict[tuple[str, ...], float] = {}
        self._ages_ms: dict[tuple[str, ...], float] = {}
        self._waiting: dict[tuple[str, ...], float] = {}
        self._behind_ms: dict[tuple[str, ...], float] = {}
        metrics.observe(metrics.DEPTH, lambda: self._depths)
        metrics.observe(metrics.OLDEST_AGE, lambda: self._ages_ms)
        metrics.observe(metrics.WEBHOOK_WAITING, lambda: self._waiting)
        metrics.observe(metrics.WEBHOOK_BEHIND, lambda: self._behind_ms)
        metrics.observe(metrics.IN_FLIGHT, lambda: {(): replica.in_flight})
        metrics.observe(
            metrics.HOP_OUT,
            lambda: {
                (hop,): float(breaker.state is not BreakerState.CLOSED) for hop, breaker in breakers.items()
            },
        )

    async def run(self) -> None:
        """Read every `INTERVAL_S`, or more rarely what takes long, until cancelled; while PostgreSQL is away the last readings stay."""
        while True:
            began_s = time.monotonic()
            with suppress(StoreUnavailableError):  # others say so
                await self.read()
            await asyncio.sleep(pause_s(time.monotonic() - began_s))

    async def read(self) -> None:
        """Read once. Raises `StoreUnavailableError`."""
        rows = {row["class"]: row for row in await self._store.fetch("read_schedule")}
        self._depths = {(name,): rows[name]["depth"] if name in rows else 0 for name in DeliveryClass}
        self._ages_ms = {
            (name,): rows[name]["oldest_age_ms"] if name in rows else 0.0 for name in DeliveryClass
        }
        if self._webhooks:
            lags = await self._store.fetch("read_webhook_lag", self._webhooks, MAX_COUNTED)
            self._waiting = {(row["name"],): row["waiting"] for row in lags}
            self._behind_ms = {(row["name"],): row["behind_ms"] for row in lags}


def pause_s(took_s: float) -> float:
    """Return how long to rest after a look that took `took_s`."""
    return min(max(INTERVAL_S, REST * took_s), LONGEST_S)
