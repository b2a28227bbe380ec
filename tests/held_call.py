"""A call that lasts as long as a test wants, for tests of what goes on aside."""

import asyncio
import threading

PATIENCE_S = 60.0


class HeldCall:
    """A call that begins, and ends when it is let go."""

    def __init__(self):
        self.begun = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._let_go = threading.Event()

    def __call__(self):
        self._loop.call_soon_threadsafe(self.begun.set)
        assert self._let_go.wait(PATIENCE_S)
        return threading.current_thread()

    def let_go(self):
        """Let the call end."""
        self._let_go.set()
