"""Make the pictures of `docs/images` anew: `make screenshots`.

Runs the development environment with mail of every fate, in a quick motion (the charts' quarter of an hour passes in a
minute), and looks at its console with Debian's Chromium.
"""
# ruff: noqa: INP001  # a script beside the pages it serves, no package

import asyncio
import json
import shutil
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import asyncpg
from playwright.async_api import Browser, async_playwright

from mailkeep.console import traffic
from mailkeep.dev.environment import DevEnvironment, development
from mailkeep.dev.examples import examples

IMAGES: Final = Path(__file__).parent / "images"
DESK: Final = {"width": 1120, "height": 700}
PHONE: Final = {"width": 390, "height": 844}
MAX_BYTES: Final = 150_000
ROUNDS: Final = 420
PAUSE_S: Final = 0.12
QUICK_QUARTER_S: Final = 50.0
LOOK_S: Final = 0.3
"""So that the charts are nearly full by then."""
SETTLE_S: Final = 9.0
"""Until the short ladder is exhausted."""


def _post(environment: DevEnvironment, path: str, body: dict[str, Any]) -> dict[str, Any]:
    url = f"http://{environment.service.http_address}{path}"
    headers = {"Content-Type": "application/json", "Idempotency-Key": uuid4().hex}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own listener
        found: dict[str, Any] = json.load(answer)
        return found


def _mail(to: str, subject: str) -> dict[str, Any]:
    return {"payload_mode": "rendered", "payload": {"to": [to], "subject": subject, "text": f"{subject}.\n"}}


async def _crowd(environment: DevEnvironment) -> None:
    """Send much mail for a while."""
    path = "/api/v1/internal/deliveries"
    for number in range(ROUNDS):
        crowd = 2 + number % 3 + (number // 100)
        batch = [
            _mail(f"{'bounce+' if n == 6 else ''}reader{n}@sinkhole.test", "News of the week")
            for n in range(crowd)
        ]
        if number % 90 == 89:
            batch.append(_mail("defer+late@sinkhole.test", "Your invoice") | {"class": "relay"})
        await asyncio.to_thread(_post, environment, f"{path}/batch", {"commands": batch})
        await asyncio.sleep(PAUSE_S)


async def _fates(environment: DevEnvironment) -> dict[str, str]:
    """Send mail of every fate and wait for it; answers the ids of the examples by their titles."""
    path = "/api/v1/internal/deliveries"
    ids = {}
    for example in examples():
        sent = await asyncio.to_thread(_post, environment, example.path, example.body)
        ids[example.title] = sent["delivery_id"]
    for to in ("bounce+eve", "defer+frank", "tempfail.data+gus", "drop.dot+hal"):
        await asyncio.to_thread(_post, environment, path, _mail(f"{to}@sinkhole.test", "Your invoice"))
    connection = await asyncpg.connect(environment.state.postgres_dsn)
    bad = {"payload_mode": "rendered", "payload": {"to": ["nobody"], "subject": "Hello", "text": "x"}}
    await connection.fetchval("SELECT mail.enqueue($1::jsonb)", json.dumps(bad))
    await connection.close()
    await asyncio.sleep(SETTLE_S)
    return ids


async def _shoot(
    browser: Browser, url: str, path: str, name: str, *, dark: bool = False, phone: bool = False
) -> None:
    page = await browser.new_page(
        viewport=PHONE if phone else DESK,
        color_scheme="dark" if dark else "light",
        base_url=url,  # type: ignore[arg-type] - a viewport is these two
    )
    await page.goto(path)
    picture = await page.screenshot(path=IMAGES / f"{name}.png")
    await page.close()
    assert len(picture) <= MAX_BYTES, f"{name}.png has {len(picture)} bytes"


async def _main() -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("Chromium is missing; on Debian: apt install chromium")
    traffic.LOOK_S = LOOK_S  # type: ignore[misc] - the quick motion
    environ = {
        "MAIL_RETRY_LADDER_TRANSACTIONAL": "1s, 2s, 3s",
        "MAIL_REPLICA_HEARTBEAT": "400ms",
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with (
            development(Path(folder), environ, any_port=True) as environment,
            async_playwright() as playwright,
        ):
            url = environment.state.console_url
            assert url is not None
            browser = await playwright.chromium.launch(executable_path=chromium)
            crowd = asyncio.create_task(_crowd(environment))
            await asyncio.sleep(QUICK_QUARTER_S)
            await _shoot(browser, url, "/", "overview")
            await crowd
            ids = await _fates(environment)
            one = f"/deliveries/{ids['deferred twice, then accepted']}"
            order = f"/deliveries/{ids['order confirmation, French, HTML']}/message"
            await _shoot(browser, url, "/inbox", "inbox")
            await _shoot(browser, url, one, "delivery", dark=True)
            await _shoot(browser, url, order, "message")
            await _shoot(browser, url, "/deliveries", "deliveries-phone", phone=True)
            await browser.close()


if __name__ == "__main__":
    asyncio.run(_main())
