"""The alarm of a session: a timer that is set again with each reply and hardly ever rings.

Setting it to a later time costs no timer of the event loop: the earlier one stays, and looks again when it goes off.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

_NEVER: Final = float("inf")


class Alarm:
    """Calls `ring` once for each time it was set, unless it is set anew, cleared or stopped before."""

    __slots__ = ("_due_s", "_handle", "_handle_s", "_loop", "_ring")

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._due_s = _NEVER
        self._handle: asyncio.TimerHandle | None = None
        self._handle_s = _NEVER

    def set(self, limit_s: float) -> None:
        """Ring in `limit_s` seconds from now, and no longer at any other time."""
        self._due_s = time.monotonic() + limit_s
        if self._due_s < self._handle_s:
            self._cancel()
            self._handle_s = self._due_s
            self._handle = self._loop.call_later(limit_s, self._look)

    def clear(self) -> None:
        """Do not ring until set again."""
        self._due_s = _NEVER

    def stop(self) -> None:
        """Do not ring, and let go of the event loop."""
        self.clear()
        self._cancel()

    def _look(self) -> None:
        self._handle, self._handle_s = None, _NEVER
        left_s = self._due_s - time.monotonic()
        if left_s <= 0:
            self.clear()
            self._ring()
        elif left_s < _NEVER:
            self.set(left_s)

    def _cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self._handle_s = None, _NEVER
