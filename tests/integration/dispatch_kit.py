"""A dispatching replica in the test's process: real store, real SMTP client, next hops of the test's choosing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from queue_kit import LADDER_S
from smtp_servers import hop_to

from mailkeep.core.delivery import DeliveryClass
from mailkeep.dispatch.recorder import Recorder
from mailkeep.dispatch.replica import Replica
from mailkeep.dispatch.right_of_way import RightOfWay
from mailkeep.dispatch.scheduler import AttemptScheduler
from mailkeep.dispatch.worker import AttemptWorkerPool
from mailkeep.smtp.next_hop import NextHop
from mailkeep.smtp.pool import Pool
from mailkeep.store.postgres import Store

PATIENCE_S = 90.0
"""How long a test waits for what must happen soon."""


def hop(name: str, port: int, **changes: Any) -> NextHop:
    """Build a next hop on loopback under a name; its timers are long, so that a stalled one stays stalled."""
    timers = dict.fromkeys(("greeting_s", "mail_s", "rcpt_s", "data_s", "block_s", "dot_s"), 120.0)
    made = hop_to(port, **({"timers": timers} | changes))
    values = {field: getattr(made, field) for field in made.__struct_fields__}
    return NextHop(**(values | {"name": name}))


class Dispatch:
    """One replica with its worker pool and its scheduler."""

    def __init__(
        self,
        store: Store,
        hops: tuple[NextHop, ...],
        *,
        concurrency: int,
        ttl_s: float,
        ladder_s: tuple[float, ...],
    ) -> None:
        self.store = store
        self.replica = Replica(store, heartbeat_s=0.1, ttl_s=ttl_s)
        way = RightOfWay()
        self.recorder = Recorder(store, way)
        self.smtp = Pool(*hops)
        self.pool = AttemptWorkerPool(
            store=store,
            replica=self.replica,
            recorder=self.recorder,
            smtp=self.smtp,
            hops={made.name: made for made in hops},
            ladders=dict.fromkeys(DeliveryClass, ladder_s),
            concurrency=concurrency,
            right_of_way=way,
        )
        self.scheduler = AttemptScheduler(store=store, replica=self.replica, pool=self.pool, right_of_way=way)
        self.scheduling: asyncio.Task[None] | None = None

    def schedule(self) -> None:
        """Begin to claim what is due."""
        self.scheduling = asyncio.create_task(self.scheduler.run())

    async def unschedule(self) -> None:
        """Claim nothing more."""
        if self.scheduling is not None:
            self.scheduling.cancel()
            await asyncio.gather(self.scheduling, return_exceptions=True)


@asynccontextmanager
async def dispatching(
    store: Store,
    *hops: NextHop,
    concurrency: int = 10,
    ttl_s: float = 30.0,
    schedule: bool = True,
    ladder_s: tuple[float, ...] = LADDER_S,
) -> AsyncIterator[Dispatch]:
    """Run a replica for the length of a test."""
    dispatch = Dispatch(store, hops, concurrency=concurrency, ttl_s=ttl_s, ladder_s=ladder_s)
    await dispatch.replica.start()
    if schedule:
        dispatch.schedule()
    try:
        yield dispatch
    finally:
        await dispatch.unschedule()
        await dispatch.pool.stop(3.0)
        await dispatch.replica.stop()
        await dispatch.smtp.close(1.0)


async def until(condition: Any, within_s: float = PATIENCE_S) -> None:
    """Wait until `condition`, a function or a coroutine function, holds."""
    async with asyncio.timeout(within_s):
        while True:
            held = condition()
            if await held if asyncio.iscoroutine(held) else held:
                return
            await asyncio.sleep(0.02)
