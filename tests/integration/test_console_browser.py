"""The console in a real browser, Debian's Chromium without a screen: what only a browser can tell."""

import json
import re

import pytest
from console_kit import CHROMIUM, HARMFUL_HTML, TOKEN
from http_kit import command
from test_http_operator import accept, execute, scheduled

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium; on Debian: apt install chromium")
PAGES = (
    "/",
    "/deliveries",
    "/dead-letters",
    "/malformed",
    "/suppressions",
    "/events",
    "/doctor",
    "/routes",
    "/replicas",
    "/templates",
    "/templates/login-code",
    "/keys",
)
PATIENCE_MS = 60_000
PHONE = {"width": 360, "height": 740}


@pytest.fixture
async def browser():
    """Start the browser."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        await started.close()


@pytest.fixture
async def sends(next_hop):
    """The settings of a service with a console that sends to `next_hop`."""
    return {
        "MAIL_SMTP_MODE": "smtp",
        "MAIL_SMTP_ADDR": next_hop.address,
        "MAIL_SMTP_FROM_EMAIL": "mail@mailkeep.example",
        "MAIL_CONSOLE_ADDR": "127.0.0.1:0",
    }


@pytest.fixture
async def console(serve, sends):
    """Run such a service, without tokens."""
    return await serve(**sends)


async def opened(browser, served, **options):
    """Open a window on the console; gives the page and what it complains about or asks of others."""
    base = f"http://{served.service.console_address}"
    context = await browser.new_context(base_url=base, **options)
    context.set_default_timeout(PATIENCE_MS)
    page = await context.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda fault: complaints.append(str(fault)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on(
        "request", lambda request: None if request.url.startswith(base) else complaints.append(request.url)
    )
    return page, complaints


@pytest.mark.long
async def test_every_page_loads_without_a_complaint(browser, console):
    """No page violates its own policy, fails a script or asks another server; on a phone none is wider than the screen."""
    delivery_id = await scheduled(console, payload={"subject": "x" * 200})
    sent = await accept(
        console, payload={"html": "<p>Hello</p>", "to": [f"{'a' * 60}@{'b' * 60}.{'c' * 60}.example.org"]}
    )
    await console.settled(sent, "sent")
    page, complaints = await opened(browser, console, viewport=PHONE, color_scheme="dark")
    for path in (*PAGES, f"/deliveries/{delivery_id}", f"/deliveries/{sent}", f"/deliveries/{sent}/message"):
        await page.goto(path)
        wide, screen = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= screen, path
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    dark = await page.evaluate(ground)
    await page.emulate_media(color_scheme="light")
    assert await page.evaluate(ground) != dark
    await page.goto("/")
    async with page.expect_response("**/live"):  # it updates by itself
        pass
    assert complaints == []
    await console.service.stop()
    await page.wait_for_selector("#live[data-stale]")  # and says when it does not any more


async def test_a_harmful_mail_does_nothing(browser, console):
    """In its frame the HTML of a mail is shown, but runs nothing, sends nothing and loads nothing from anywhere."""
    delivery_id = await accept(console, payload={"html": HARMFUL_HTML})
    page, complaints = await opened(browser, console)
    await page.goto(f"/deliveries/{delivery_id}/message")
    mail = page.frame_locator("iframe.mail")
    assert await mail.locator("h1").inner_text() == "Hello"
    await mail.locator("#go").click()
    await page.wait_for_load_state("networkidle")
    refused = [
        text
        for text in complaints
        if re.search(r"Content Security Policy|sandboxed|frame is sandboxed", text)
    ]
    asked = [text for text in complaints if text.startswith("http")]
    assert [text for text in complaints if text not in refused and text not in asked] == []
    assert refused  # the browser says that it refused
    # What it was told to fetch is noted as a request, and refused before it leaves: nothing listens there, no fault of a
    # connection is told.
    assert not any("ERR_CONNECTION" in text for text in complaints)
    assert page.url.endswith("/message")


async def test_somebody_logs_in_holds_a_mail_and_leaves(browser, serve, sends, dsn):
    """A login by token, a change with a reason, its record with the name, a logout after which nothing is shown."""
    served = await serve(MAIL_INTERNAL_HTTP_TOKENS=TOKEN, **sends)
    served.client.headers["authorization"] = f"Bearer {TOKEN}"
    answer = await served.post("/api/v1/internal/deliveries", command(send_at_ms=4102444800000), "k")
    delivery_id = answer.json()["delivery_id"]
    page, complaints = await opened(browser, served)
    await page.goto(f"/deliveries/{delivery_id}")
    assert page.url.endswith("/login")
    await page.fill("[name=token]", "not the token at all")
    await page.click("text=Log in")
    assert "none of the tokens" in await page.inner_text("[role=alert]")
    complaints.clear()  # the browser tells of the 401
    await page.fill("[name=token]", TOKEN)
    await page.fill("[name=name]", "Ann")
    await page.click("button:has-text('Log in')")
    await page.wait_for_selector("h1:has-text('Overview')")
    await page.goto(f"/deliveries/{delivery_id}")
    await page.click("summary:has-text('Hold')")
    await page.wait_for_selector("details[open] input:focus")
    await page.keyboard.type("wrong price")  # the field has the focus
    await page.keyboard.press("Enter")
    await page.wait_for_selector("[role=status]:has-text('Held')")
    assert "console: Ann: wrong price" in await page.inner_text(".changes")
    rows = await execute(dsn, "SELECT verb, actor, reason FROM mail.operator_changes")
    assert [tuple(row) for row in rows] == [("hold", "console: Ann", "wrong price")]
    await page.click("text=Log out Ann")
    await page.wait_for_selector("[name=token]")
    await page.goto("/deliveries")
    assert page.url.endswith("/login")
    assert complaints == []


async def test_the_keyboard_is_enough(browser, console):
    """Keys lead to the search, through a list, into one of it, up again, and to each page."""
    ids = [await accept(console, payload={"to": [f"{name}@example.org"]}) for name in ("ann", "bo", "cy")]
    page, complaints = await opened(browser, console)
    await page.goto("/")
    await page.keyboard.press("g")
    await page.keyboard.press("d")
    await page.wait_for_url("**/deliveries")
    await page.keyboard.press("j")
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"**/deliveries/{ids[1]}")
    await page.keyboard.press("u")
    await page.wait_for_url("**/deliveries")
    await page.keyboard.press("/")
    await page.keyboard.type("cy@example.org?gd")  # keys are letters in a field
    for _ in "?gd":
        await page.keyboard.press("Backspace")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**q=cy*")
    assert await page.locator("a.row").count() == 1
    await page.keyboard.press("Escape")
    await page.locator("h1").click()
    await page.keyboard.press("?")
    await page.wait_for_url("**/keys")
    assert complaints == []


async def test_suppressions_by_keyboard(browser, console, next_hop, dsn):
    """An address is suppressed, found in the list and let go again without a mouse; a long one fits a phone."""
    long = f"{'a' * 60}@{'b' * 60}.{'c' * 60}.example.org"
    page, complaints = await opened(browser, console, viewport=PHONE)
    await page.goto("/")
    await page.keyboard.press("g")
    await page.keyboard.press("s")
    await page.wait_for_url("**/suppressions")
    await page.keyboard.press("j")  # to the first question of the page
    await page.keyboard.press("Enter")
    await page.wait_for_selector("details[open] input:focus")
    await page.keyboard.type(long)  # the field has the focus
    await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    await page.keyboard.type("left")
    await page.keyboard.press("Enter")
    await page.wait_for_selector("[role=status]:has-text('no mail from now on')")
    assert long in await page.inner_text("table")
    wide, screen = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= screen
    await page.keyboard.press("k")  # to the last one
    await page.keyboard.press("Enter")
    await page.wait_for_selector("details[open] input:focus")
    await page.keyboard.type("came back")
    await page.keyboard.press("Enter")
    await page.wait_for_selector("[role=status]:has-text('gets mail again')")
    rows = await execute(dsn, "SELECT verb, reason FROM mail.operator_changes ORDER BY id")
    assert [tuple(row) for row in rows] == [("suppress", "left"), ("unsuppress", "came back")]
    assert complaints == []


async def test_a_malformed_command_is_repaired(browser, console, dsn):
    """What is wrong stands ready to be repaired; the page follows its replay until it became a delivery."""
    bad = {"payload_mode": "rendered", "colour": "blue"}
    bad["payload"] = {"to": ["ann@example.org"], "subject": "s", "text": "t"}
    await execute(dsn, "SELECT mail.enqueue($1::jsonb)", json.dumps(bad))
    page, complaints = await opened(browser, console)
    await page.goto("/malformed")
    while not await page.locator("a.row").count():  # it is taken within a moment
        await page.reload()
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")
    await page.wait_for_selector("h1:has-text('unknown field')")
    assert await page.input_value("textarea") == "colour="
    await page.click("button:has-text('Take it again')")
    await page.wait_for_selector(
        "[role=status]:has-text('taken again'), [role=status]:has-text('takes it again')"
    )
    await page.click("#live a.id")
    await page.wait_for_selector(".pill.sent")
    assert complaints == []


async def test_events_follow_what_happens(browser, console):
    """The page of events shows by itself what happened after it was opened, and its keys lead into a delivery."""
    page, complaints = await opened(browser, console)
    await page.goto("/events")
    assert "None yet" in await page.inner_text("#live")
    delivery_id = await accept(console)
    await page.wait_for_selector(f"#live a[href='/deliveries/{delivery_id}']")
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"**/deliveries/{delivery_id}")
    assert complaints == []


async def test_the_doctor_by_keyboard(browser, serve, sends, next_hop):
    """A finding stands with its evidence and next step; j leads through the checks, which Enter opens."""
    next_hop.reply = "451 4.3.0 Local error"
    console = await serve(MAIL_RETRY_LADDER_TRANSACTIONAL="1ms", **sends)
    await console.settled(await accept(console), "dead_letter")
    page, complaints = await opened(browser, console, color_scheme="dark")
    await page.goto("/")
    await page.keyboard.press("g")
    await page.keyboard.press("h")
    await page.wait_for_selector("#dead-letters .finding")
    assert "451 4.3.0" in await page.inner_text("#dead-letters .evidence")
    assert "Next:" in await page.inner_text("#dead-letters .next")
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")
    assert await page.locator("#backlog details[open]").count() == 1
    assert complaints == []


async def test_everything_works_without_scripts(browser, console):
    """With scripts off lists are filtered, a mail is held with a reason and dead letters could be chosen: links and forms."""
    delivery_id = await scheduled(console)
    page, complaints = await opened(browser, console, java_script_enabled=False)
    await page.goto("/deliveries")
    await page.click("summary:has-text('Filters')")
    await page.select_option("[name=status]", "waiting")
    await page.click("button:has-text('Apply')")
    await page.click("a.row")
    await page.click("summary:has-text('Hold')")
    await page.fill("details[open] [name=reason]", "by hand")
    await page.click("details[open] button")
    assert "by hand" in await page.inner_text(".changes")
    assert (await console.settled(delivery_id, "held"))["status"] == "held"
    await page.click("text=Look at the message")
    await page.click("nav.tabs >> text=Source")
    assert "Message-ID" in await page.inner_text("pre.source")
    assert complaints == []
