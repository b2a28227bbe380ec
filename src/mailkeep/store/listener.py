"""Hears `NOTIFY mail_due` on a connection of its own and wakes the scheduler; reconnects for ever.

Notifications only shorten a wait: a lost one costs no more than the scheduler's longest sleep. So where sessions are not
kept (PgBouncer in transaction mode) everything still works.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import asyncpg
import structlog

from mailkeep.store.errors import StoreUnavailableError, translated

CHANNEL: Final = "mail_due"
RECONNECT_S: Final = 2.0
CONNECT_TIMEOUT_S: Final = 5.0


class DueListener:
    """Calls `on_due` for each notification. `run` until cancelled."""

    def __init__(self, dsn: str, on_due: Callable[[], None]) -> None:
        self._dsn = dsn
        self._on_due = on_due
        self._log = structlog.get_logger("due_listener")

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                await self._listen()
            except StoreUnavailableError as fault:
                self._log.warning("listening for due mail interrupted", error=str(fault))
            await asyncio.sleep(RECONNECT_S)

    async def _listen(self) -> None:
        closed = asyncio.Event()
        with translated():
            connection = await asyncpg.connect(self._dsn, timeout=CONNECT_TIMEOUT_S)
            try:
                connection.add_termination_listener(lambda _connection: closed.set())
                await connection.add_listener(CHANNEL, lambda *_notification: self._on_due())
                self._on_due()  # what came while nobody listened
                await closed.wait()
            finally:
                connection.terminate()
