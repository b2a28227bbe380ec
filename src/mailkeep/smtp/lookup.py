"""Looks up the hosts of a next hop, or of a webhook.

The C library can't be told to stop, so that a name server that says nothing holds a thread for as long as that takes. Each
address therefore has one look-up at a time, shared by whoever waits for it, in a thread of its own: however many attempts
its hop makes, they never take a thread that another hop needs, and no look-up keeps the process from ending.
"""

import asyncio
import contextlib
import ipaddress
import socket
import threading
from typing import Any, Final, TypeAlias

from mailkeep.core.outcome import Phase
from mailkeep.smtp.classify import FailureKind
from mailkeep.smtp.next_hop import HopAddress
from mailkeep.smtp.session import Place, SessionBrokenError

MAX_PLACES: Final = 8
"""IP addresses of one host that are looked at."""

_Entry: TypeAlias = tuple[Any, ...]
_Found: TypeAlias = list[_Entry] | Exception


class Lookups:
    """The look-ups of one party, each within `limit_s`, in the family of its `source_address`."""

    __slots__ = ("_family", "_limit_s", "_running")

    def __init__(self, limit_s: float, source_address: str | None = None) -> None:
        self._family = _family(source_address)
        self._limit_s = limit_s
        self._running: dict[HopAddress, asyncio.Future[_Found]] = {}

    async def places(self, address: HopAddress) -> list[Place]:
        """Return where `address` is. Raises `SessionBrokenError`, at `CONNECT`."""
        found: _Found
        try:
            found = self._look_up(address, socket.AI_NUMERICHOST)  # asks nobody
        except (OSError, UnicodeError):
            found = await self._ask(address)
        if isinstance(found, Exception):
            raise SessionBrokenError(Phase.CONNECT, FailureKind.DNS) from found
        return [Place(address.host, family, place) for family, _, _, _, place in found[:MAX_PLACES]]

    async def _ask(self, address: HopAddress) -> _Found:
        try:
            async with asyncio.timeout(self._limit_s):
                return await asyncio.shield(self._running.get(address) or self._begin(address))
        except TimeoutError as fault:
            raise SessionBrokenError(Phase.CONNECT, FailureKind.TIMEOUT, "resolving the host name") from fault

    def _begin(self, address: HopAddress) -> asyncio.Future[_Found]:
        loop = asyncio.get_running_loop()
        looking: asyncio.Future[_Found] = loop.create_future()

        def look_up() -> None:
            found: _Found
            try:
                found = self._look_up(address)
            except (OSError, UnicodeError) as fault:  # an impossible name fails before it is looked up
                found = fault
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(looking.set_result, found)

        threading.Thread(target=look_up, name=f"look up {address.host}", daemon=True).start()
        self._running[address] = looking
        looking.add_done_callback(lambda _: self._running.pop(address))
        return looking

    def _look_up(self, address: HopAddress, flags: int = 0) -> list[_Entry]:
        return socket.getaddrinfo(address.host, address.port, self._family, socket.SOCK_STREAM, flags=flags)


def _family(source_address: str | None) -> int:
    if source_address is None:
        return socket.AF_UNSPEC
    return socket.AF_INET if ipaddress.ip_address(source_address).version == 4 else socket.AF_INET6
