"""Sends the examples over HTTP, as any program would, and shows live what becomes of each."""

import asyncio
import http.client
import time
from typing import Any, Final
from uuid import uuid4

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mailkeep.core.delivery import TERMINAL, DeliveryStatus
from mailkeep.dev.examples import API, Example, examples

REFRESH_S: Final = 0.1
GIVE_UP_S: Final = 60.0
REQUEST_TIMEOUT_S: Final = 10.0


class Shown(msgspec.Struct):
    """One example on its way."""

    example: Example
    delivery_id: str
    status: str = ""
    attempts: int = 0
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether it ended."""
        return self.status in TERMINAL

    @property
    def as_expected(self) -> bool:
        """Whether it ended as it must."""
        return self.status == DeliveryStatus.SENT and self.attempts == self.example.attempts


class HttpError(Exception):
    """The service answered with an error."""


async def show_examples(console: Console, host: str, port: int) -> bool:
    """Send every example and follow it to its end; answers whether all ended as expected."""
    shown = [await asyncio.to_thread(_send, host, port, example) for example in examples()]
    if console.is_terminal:
        with Live(_table(shown), console=console, refresh_per_second=10) as live:
            async for _ in _followed(shown, host, port):
                live.update(_table(shown))
    else:
        async for changed in _followed(shown, host, port):
            for entry in changed:
                console.print(
                    f"  {entry.status:<10} attempt {entry.attempts}  {entry.example.title}  {entry.reason}",
                    soft_wrap=True,
                )
    return all(entry.as_expected for entry in shown)


async def _followed(shown: list[Shown], host: str, port: int) -> Any:  # noqa: ANN401 - an async generator of changes
    ends_at = time.monotonic() + GIVE_UP_S
    while time.monotonic() < ends_at:
        yield [entry for entry in shown if await asyncio.to_thread(_refresh, host, port, entry)]
        if all(entry.ended for entry in shown):
            return
        await asyncio.sleep(REFRESH_S)


def _table(shown: list[Shown]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("example", "status", "attempts", "last words of the next hop"):
        table.add_column(heading)
    for entry in shown:
        colour = "green" if entry.as_expected else "red" if entry.ended else "yellow"
        table.add_row(entry.example.title, f"[{colour}]{entry.status}[/]", str(entry.attempts), entry.reason)
    return table


def _send(host: str, port: int, example: Example) -> Shown:
    answer = _call(host, port, "POST", example.path, example.body)
    return Shown(example, answer["delivery_id"])


def _refresh(host: str, port: int, entry: Shown) -> bool:
    path = f"{API}/deliveries/{entry.delivery_id}"
    delivery = _call(host, port, "GET", path)
    attempts = [
        a for a in _call(host, port, "GET", f"{path}/attempts")["attempts"] if a["status"] != "in_progress"
    ]
    before = (entry.status, entry.attempts)
    entry.status, entry.attempts = delivery["status"], len(attempts)
    if attempts:
        last = attempts[-1]
        entry.reason = " ".join(str(last[name]) for name in ("code", "enhanced", "reply") if last.get(name))
    return before != (entry.status, entry.attempts)


def _call(host: str, port: int, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
    connection = http.client.HTTPConnection(host, port, timeout=REQUEST_TIMEOUT_S)
    try:
        headers = {"Content-Type": "application/json", "Idempotency-Key": str(uuid4())} if body else {}
        connection.request(method, path, msgspec.json.encode(body) if body else None, headers)
        response = connection.getresponse()
        content = msgspec.json.decode(response.read())
        if response.status >= 400:
            raise HttpError(f"{method} {path} answered {response.status}: {content}")
        return content
    finally:
        connection.close()
