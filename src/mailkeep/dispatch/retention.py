"""The retention worker: drops what is old enough, a day's partition at a time, and never a live row.

Partitions whose every delivery ended long enough ago are dropped whole. Where a live row holds a day back, the ended
rows of that day are deleted in batches instead, so that one held message does not keep a month of payloads.
"""

import asyncio
from typing import Final

import structlog

from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.retention import Retention, Swept

FIRST_RUN_S: Final = 10.0
"""After the start: a service that restarts often still cleans up."""


class RetentionWorker:
    """Sweeps every `interval_s`; `run` until cancelled."""

    def __init__(self, retention: Retention, interval_s: float) -> None:
        self._retention = retention
        self._interval_s = interval_s
        self._log = structlog.get_logger("retention_worker")

    async def run(self) -> None:
        """Sweep until cancelled."""
        self._log.info("retention worker started")
        try:
            await asyncio.sleep(min(FIRST_RUN_S, self._interval_s))
            while True:
                await self._sweep()
                await asyncio.sleep(self._interval_s)
        finally:
            self._log.info("retention worker stopped")

    async def _sweep(self) -> None:
        try:
            swept = await self._retention.sweep()
        except StoreUnavailableError as fault:
            self._log.warning("retention waits for PostgreSQL", error=str(fault))
            return
        if swept != Swept():
            self._log.info("retention swept", **swept.as_fields())
