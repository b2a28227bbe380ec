"""What is large is worked on aside: one thread a process, one mail at a time, while the event loop goes on.

Everything else waits as long as one call in the event loop takes, and there are passes over a mail of 10 MB that take tens of
milliseconds. Who has something larger than `LARGE_BYTES` in hand brings it here; small mail stays in the loop, where it costs no
change of threads. One thread is enough, since most of this work holds the interpreter, and what is needed in between is
there for one mail only. What waits is bounded by those who hold it: bodies of requests, batches of the stream, claims.

What is called must touch nothing that others change meanwhile. It goes piece by piece, with `breathe` in between: a call of the
interpreter's own, however long, lets nobody in, and a thread that is merely interrupted takes 5 ms for each step of the event
loop. A caller that is cancelled leaves a call that has begun to run to its end, for nobody.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LARGE_BYTES: Final = 256 * 1024
"""Up to here a pass takes less than a millisecond, and a change of threads would cost as much."""
PIECE_BYTES: Final = 256 * 1024
"""How much a pass takes between two breaths, at most: some tenths of a millisecond."""
BREATH_S: Final = 0.0001
"""Long enough that another thread takes over, short beside a piece."""

_THREAD: Final = ThreadPoolExecutor(1, "aside")
_HERE: Final = threading.local()


async def aside(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `call` returns, once its turn has come, in the context of the caller; raise what it raises."""

    def called() -> T:
        _HERE.aside = True
        return call(*args, **kwargs)

    return await asyncio.get_running_loop().run_in_executor(_THREAD, copy_context().run, called)


def breathe() -> None:
    """Let the event loop have its turn, where this is not its own thread."""
    if getattr(_HERE, "aside", False):
        time.sleep(BREATH_S)
