"""Hears what PostgreSQL notifies on a connection of its own and wakes who waits for it; reconnects for ever.

Notifications only shorten a wait: a lost one costs no more than the scheduler's longest sleep. So behind a pooler, which
keeps no session to listen on, nobody listens, and everything still works.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from mailkeep.store.connect import connect, is_pooled
from mailkeep.store.errors import StoreUnavailableError, translated

DUE: Final = "mail_due"
ENQUEUED: Final = "mail_enqueued"
PROBE: Final = "mail_probe"
RECONNECT_S: Final = 2.0


class NotificationListener:
    """Calls for each notification what `wakes` has under its channel. `run` until cancelled."""

    def __init__(self, dsn: str, wakes: Mapping[str, Callable[[], None]]) -> None:
        self._dsn = dsn
        self._wakes = wakes
        self._log = structlog.get_logger("notification_listener")

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                await self._listen()
            except StoreUnavailableError as fault:
                self._log.warning("listening for notifications interrupted", error=str(fault))
            await asyncio.sleep(RECONNECT_S)

    async def _listen(self) -> None:
        closed = asyncio.Event()
        with translated():
            connection = await connect(self._dsn)
            try:
                if await is_pooled(connection):
                    self._log.info("a pooler stands before PostgreSQL: new mail is looked for, not heard of")
                    await connection.close()
                    await asyncio.Event().wait()
                connection.add_termination_listener(lambda _connection: closed.set())
                for channel in self._wakes:
                    await connection.add_listener(channel, self._hear)
                for wake in self._wakes.values():
                    wake()  # what came while nobody listened
                await closed.wait()
            finally:
                connection.terminate()

    def _hear(self, _connection: object, _pid: int, channel: str, _payload: object) -> None:
        self._wakes[channel]()
