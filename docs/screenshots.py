"""Make the pictures of `docs/images` anew: `make screenshots`.

Runs the development environment with mail of every fate, in a quick motion (the charts' quarter of an hour passes in a
minute), and looks at each page of its console with Debian's Chromium: light and dark, on a desk and on a phone.
"""
# ruff: noqa: INP001  # a script beside the pages it serves, no package

import asyncio
import json
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import asyncpg
from PIL import Image
from playwright.async_api import Browser, async_playwright

from mailkeep.console import traffic
from mailkeep.dev.environment import DevEnvironment, development
from mailkeep.dev.examples import examples
from mailkeep.sinkhole.client import SinkholeClient

IMAGES: Final = Path(__file__).parent / "images"
DESK: Final = {"width": 1120, "height": 700}
PHONE: Final = {"width": 390, "height": 844}
LOOKS: Final = tuple((scheme, screen) for screen in ("desk", "phone") for scheme in ("light", "dark"))
"""Each page is shown so: `overview-dark-phone.png`."""
MAX_BYTES: Final = 60_000
COLOURS: Final = 256
TOKEN: Final = "for-these-pictures-alone"  # noqa: S105 - as it says
PAGES: Final = {
    "login": "/login",
    "overview": "/",
    "inbox": "/inbox",
    "inbox-message": "/inbox/{inbox_message}",
    "transcript": "/inbox/connections/{connection}",
    "deliveries": "/deliveries",
    "delivery": "/deliveries/{delivery}",
    "message": "/deliveries/{order}/message",
    "dead-letters": "/dead-letters",
    "malformed": "/malformed",
    "malformed-one": "/malformed/{malformed}",
    "suppressions": "/suppressions",
    "events": "/events",
    "routes": "/routes",
    "replicas": "/replicas",
    "templates": "/templates",
    "template": "/templates/order-confirmation?locale=fr-CA",
    "doctor": "/doctor",
    "keys": "/keys",
}
"""Every page by the name of its pictures; the names in braces are those of `_fates`."""
ROUNDS: Final = 420
PAUSE_S: Final = 0.12
QUICK_QUARTER_S: Final = 50.0
LOOK_S: Final = 0.3
"""So that the charts are nearly full by then."""
SETTLE_S: Final = 9.0
"""Until the short ladder is exhausted."""


def _post(environment: DevEnvironment, path: str, body: dict[str, Any]) -> dict[str, Any]:
    url = f"http://{environment.service.http_address}{path}"
    headers = {
        "Content-Type": "application/json",
        "Idempotency-Key": uuid4().hex,
        "Authorization": f"Bearer {TOKEN}",
    }
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
    """Send mail of every fate and wait for it; answers the ids that `PAGES` names."""
    path = "/api/v1/internal/deliveries"
    ids = {}
    for example in examples():
        sent = await asyncio.to_thread(_post, environment, example.path, example.body)
        ids[example.title] = sent["delivery_id"]
    for to in ("bounce+eve", "defer+frank", "tempfail.data+gus", "drop.dot+hal"):
        await asyncio.to_thread(_post, environment, path, _mail(f"{to}@sinkhole.test", "Your invoice"))
    connection = await asyncpg.connect(environment.state.postgres_dsn)
    for number, bad in enumerate(({"to": ["nobody"]}, {"colour": "blue"}, {"subject": None})):
        payload = {"to": ["ann@sinkhole.test"], "subject": "Hello", "text": "x"} | bad
        command = {
            "payload_mode": "rendered",
            "idempotency_key": f"order-{10042 + number}",
            "payload": payload,
        }
        await connection.fetchval("SELECT mail.enqueue($1::jsonb)", json.dumps(command))
    await asyncio.sleep(SETTLE_S)
    malformed = await connection.fetchval("SELECT id FROM mail.malformed_commands ORDER BY id LIMIT 1")
    await connection.close()
    sinkhole = SinkholeClient(environment.state.sinkhole_url)
    inbox = await asyncio.to_thread(sinkhole.inbox, recipient=None, limit=50)
    line = next(line for line in inbox.messages if line.recipients[0].startswith("claire"))
    return {
        "delivery": ids["deferred twice, then accepted"],
        "order": ids["order confirmation, French, HTML"],
        "malformed": str(malformed),
        "inbox_message": line.id,
        "connection": line.connection_id,
    }


async def _shoot(browser: Browser, url: str, names: Iterable[str], ids: Mapping[str, str]) -> None:
    """Take the four pictures of each page."""
    for scheme, screen in LOOKS:
        context = await browser.new_context(
            viewport=PHONE if screen == "phone" else DESK,  # type: ignore[arg-type] - a viewport is these two
            color_scheme=scheme,  # type: ignore[arg-type] - and a scheme one of these
            base_url=url,
        )
        page = await context.new_page()
        await page.goto(PAGES["login"])
        for name in names:
            if name != "login" and await page.locator("[name=token]").count():
                await page.fill("[name=token]", TOKEN)
                await page.fill("[name=name]", "Ann")
                await page.click("button")
                await page.wait_for_selector("nav")
            await page.goto(PAGES[name].format_map(ids))
            _keep(await page.screenshot(), f"{name}-{scheme}-{screen}")
        await context.close()


def _keep(picture: bytes, name: str) -> None:
    """Write a picture with as few colours as a page has: a third of the bytes."""
    path = IMAGES / f"{name}.png"
    drawn = Image.open(BytesIO(picture)).convert("RGB")
    # The method that keeps rare colours, such as those of a legend.
    few = drawn.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    size_bytes = path.stat().st_size
    assert size_bytes <= MAX_BYTES, f"{path.name} has {size_bytes} bytes"


async def _main() -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("Chromium is missing; on Debian: apt install chromium")
    traffic.LOOK_S = LOOK_S  # type: ignore[misc] - the quick motion
    environ = {
        "MAIL_RETRY_LADDER_TRANSACTIONAL": "1s, 2s, 3s",
        "MAIL_REPLICA_HEARTBEAT": "400ms",
        "MAIL_INTERNAL_HTTP_TOKENS": TOKEN,
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
            await _shoot(browser, url, ["overview"], {})
            await crowd
            ids = await _fates(environment)
            await _shoot(browser, url, [name for name in PAGES if name != "overview"], ids)
            await browser.close()


if __name__ == "__main__":
    asyncio.run(_main())
