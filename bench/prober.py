"""How long an event loop stands still, seen from outside: a process that asks for next to nothing, again and again.

Each request waits for the loop and for nothing else: the service answers an unknown path with 404 before it touches anything. The
longest wait is the longest stall, and what the machine itself adds: so a process that does nothing else is asked likewise, and
its longest wait is the measure's own error.
"""

import asyncio
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Final

import uvloop

from bench.child import Child

PAUSE_S: Final = 0.01  # between an answer and the next question
REQUEST: Final = b"GET /bench-probe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
MAX_HEAD_BYTES: Final = 65_536


class Prober(Child):
    """Asks each of `ports`; `begin` starts it, `longest_ms` ends it."""

    def __init__(self, ports: Sequence[int]) -> None:
        super().__init__(_run, ports)

    def begin(self) -> None:
        """Start to ask."""
        self.send("begin")

    def longest_ms(self) -> list[float]:
        """Return the longest wait for each port since the beginning."""
        waits_ms: list[float] = self.ask("end")
        return waits_ms


def _run(pipe: Connection, ports: Sequence[int]) -> None:
    pipe.send("ready")
    pipe.recv()
    pipe.send(uvloop.run(_probe(pipe, ports)))


async def _probe(pipe: Connection, ports: Sequence[int]) -> list[float]:
    longest_ms = [0.0] * len(ports)
    asking = [asyncio.create_task(_ask(port, place, longest_ms)) for place, port in enumerate(ports)]
    await asyncio.to_thread(pipe.recv)
    for task in asking:
        if task.done():
            task.result()  # a probe that broke off has no figure
        task.cancel()
    return longest_ms


async def _ask(port: int, place: int, longest_ms: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MAX_HEAD_BYTES)
    while True:
        begin_ns = time.monotonic_ns()
        writer.write(REQUEST)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        longest_ms[place] = max(longest_ms[place], (time.monotonic_ns() - begin_ns) / 1e6)
        await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0))
        await asyncio.sleep(PAUSE_S)
