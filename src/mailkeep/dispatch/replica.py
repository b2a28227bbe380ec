"""The process as a replica: its heartbeat, and with it the right to send.

One row in `mail.replicas` stands for every claim this process holds. While it beats, its claims are safe; when it could
not beat for half the TTL it opens no SMTP transaction and sends no final dot, so that by the time others take its mail
over (a full TTL of silence) it has long fallen quiet. A replica that was declared lost starts anew under another id:
the old id's claims are gone, and no statement fenced by them changes a row.
"""

import asyncio
import os
import socket
import time
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog

from mailkeep.core.ids import new_id
from mailkeep.core.queue import HopOut
from mailkeep.store.errors import StoreUnavailableError, translated
from mailkeep.store.postgres import Store
from mailkeep.telemetry import metrics
from mailkeep.version import __version__

SILENT_SHARE: Final = 0.5
"""The share of the TTL without a successful beat after which a replica sends nothing any more."""


class Replica:
    """The heartbeat of this process. `start` it before anything is claimed, `stop` it after everything is given back."""

    def __init__(self, store: Store, *, heartbeat_s: float, ttl_s: float) -> None:
        self._store = store
        self._heartbeat_s = heartbeat_s
        self._ttl_s = ttl_s
        self._beaten_at = -float("inf")  # monotonic, taken before the beat was sent
        self._in_touch_since = float("inf")  # monotonic
        self._clock_offset_s = time.time() - time.monotonic()
        self._beating: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("replica")
        self.id = new_id(time.time())
        self.in_flight = 0
        """How many claims this process holds; shown to operators, kept by the worker pool."""
        self.hops_out: dict[str, HopOut] = {}
        """The next hops whose breaker is open; shown to operators, kept by the worker pool."""

    @property
    def may_send(self) -> bool:
        """Whether this replica beat recently enough to be sure that nobody has taken its claims over."""
        return time.monotonic() - self._beaten_at < self._ttl_s * SILENT_SHARE

    @property
    def may_judge(self) -> bool:
        """Whether the silence of others means anything: after an outage of PostgreSQL they get a full TTL to beat again."""
        return self.may_send and time.monotonic() - self._in_touch_since >= self._ttl_s

    def now_s(self) -> float:
        """Return the database's clock in Unix seconds, as known from the last beat; a clock that jumps here moves nothing."""
        return time.monotonic() + self._clock_offset_s

    def holds(self, replica_id: UUID) -> bool:
        """Whether a claim made under `replica_id` is this replica's and may still be worked on."""
        return replica_id == self.id and self.may_send

    async def start(self) -> None:
        """Register and begin to beat. Raises `StoreUnavailableError`."""
        await self._register()
        self._beating = asyncio.create_task(self._beat_forever(), name="replica heartbeat")
        self._log.info("replica heartbeat started", replica_id=str(self.id))

    async def stop(self) -> None:
        """Stop beating and say so, so that anything still claimed is taken over at once."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        try:
            await self._store.stop_replica(self.id)
        except StoreUnavailableError:
            self._log.warning(
                "replica could not say goodbye; others take over after its TTL", replica_id=str(self.id)
            )
        self._log.info("replica heartbeat stopped", replica_id=str(self.id))

    async def _register(self) -> None:
        began = time.monotonic()
        replica_id = new_id(self.now_s())
        now, up_s = await self._store.register_replica(
            replica_id, socket.gethostname(), os.getpid(), __version__
        )
        self.id = replica_id
        if self._beating is None:
            self._in_touch_since = began - up_s
        self._was_heard(began, now)

    async def _beat_forever(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            try:
                await self._beat()
            except StoreUnavailableError as fault:
                self._log.warning("heartbeat failed", error=str(fault), may_send=self.may_send)

    async def _beat(self) -> None:
        began = time.monotonic()
        # A beat that hangs is one that failed. Not `wait_for`: before Python 3.12 it may swallow an order to stop.
        with translated():
            try:
                async with asyncio.timeout(self._ttl_s):
                    now = await self._store.beat(self.id, self.in_flight, self.hops_out, metrics.totals())
            except TimeoutError:
                await self._store.renew_connections()
                raise
        if now is None:
            lost = self.id
            await self._register()
            self._log.error(
                "replica was declared lost and starts anew", lost_id=str(lost), replica_id=str(self.id)
            )
            return
        self._was_heard(began, now)

    def _was_heard(self, began: float, now: datetime) -> None:
        if not self.may_send and self._beating is not None:
            self._in_touch_since = time.monotonic()
        self._beaten_at = began
        self._clock_offset_s = now.timestamp() - time.monotonic()
