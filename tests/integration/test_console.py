"""The console over HTTP: what its pages show and hide, who is let in, what a form needs to change anything."""

import asyncio
import json
import re
from html import unescape
from urllib.parse import urlsplit

import asyncpg
import pytest
from console_kit import HARM, HARMFUL_HTML, TOKEN, Visitor
from http_kit import LOGIN_CODES, login_code
from test_http_operator import accept, execute, scheduled

from mailkeep.console.deliveries import MAX_REDRIVEN
from mailkeep.console.guard import MAX_FORM_BYTES
from mailkeep.intake.listener import HttpListener
from mailkeep.sinkhole.api import SinkholeApi
from mailkeep.sinkhole.mode_source import FixedModeSource
from mailkeep.sinkhole.script import parse_mode
from mailkeep.sinkhole.server import Sinkhole
from mailkeep.sinkhole.transcripts import Transcripts
from mailkeep.store.sealing import new_key

PAGES = (
    "/",
    "/live",
    "/deliveries",
    "/dead-letters",
    "/malformed",
    "/suppressions",
    "/events",
    "/events/live",
    "/doctor",
    "/routes",
    "/replicas",
    "/templates",
    "/keys",
)
UNKNOWN = "01a20320-0000-7000-8000-000000000000"
CONSOLE = {"MAIL_CONSOLE_ADDR": "127.0.0.1:0"}


@pytest.fixture
async def console(serve, next_hop):
    """Run a service with a console that sends to `next_hop`, and a visitor of it."""
    served = await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
        MAIL_RETRY_LADDER_TRANSACTIONAL="1ms",
        MAIL_RETRY_LADDER_AUTH="5m",
        **CONSOLE,
    )
    visitor = Visitor(served)
    yield served, visitor
    await visitor.client.aclose()


async def changes(dsn):
    """Return what was recorded of changes by hand, oldest first."""
    rows = await execute(dsn, "SELECT verb, actor, reason FROM mail.operator_changes ORDER BY id")
    return [tuple(row) for row in rows]


async def dead_letter(served, next_hop):
    """Make a dead letter and return its id."""
    next_hop.reply = "451 4.3.0 Local error"
    delivery_id = await accept(served)
    await served.settled(delivery_id, "dead_letter")
    next_hop.reply = "250 2.1.5 Ok"
    return delivery_id


# -- what every answer has -----------------------------------------------------------------------------------------


async def test_every_page_comes_under_a_strict_policy(console):
    """Pages, their parts, refusals and files say that nothing foreign is loaded, run, framed or kept."""
    served, visitor = console
    delivery_id = await scheduled(served)
    one = f"/deliveries/{delivery_id}"
    for path in (
        *PAGES,
        one,
        f"{one}/live",
        f"{one}/message",
        "/templates/login-code",
        "/nowhere",
        "/static/console.css",
    ):
        answer = await visitor.see(path)
        assert answer.status_code == (404 if path == "/nowhere" else 200), path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert ("no-store" in answer.headers["cache-control"]) == (not path.startswith("/static/"))
        if not path.startswith("/static/"):
            assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|https?://", answer.text), (
                path
            )


async def test_what_others_wrote_is_text(console, next_hop, dsn):
    """Subjects, names, replies, reasons, fields and searches full of markup come out as text on every page."""
    served, visitor = console
    next_hop.reply = f"550 5.1.1 {HARM}"
    refused = await accept(
        served, payload={"to": ["Ann <ann@example.org>"], "subject": HARM, "text": HARM, "html": HARMFUL_HTML}
    )
    await served.settled(refused, "failed")
    held = await scheduled(served)
    await visitor.act(f"/deliveries/{held}", f"/deliveries/{held}/hold", reason=HARM)
    bad = {"payload_mode": "rendered", HARM: HARM, "payload": {"to": ["x"], "subject": "s", "text": "t"}}
    await execute(dsn, "SELECT mail.enqueue($1::jsonb)", json.dumps(bad))
    async with asyncio.timeout(60):
        while not (found := re.findall(r'href="(/malformed/[^"]+)"', (await visitor.see("/malformed")).text)):
            await asyncio.sleep(0.05)
    paths = [*PAGES, f"/deliveries/{refused}", f"/deliveries/{held}", found[0]]
    paths += [f"/deliveries/{refused}/message?view={view}" for view in ("html", "text", "source")]
    paths += [
        f"/deliveries?{name}=%3Cscript%3Efetch"
        for name in ("q", "status", "recipient", "rule", "since", "said")
    ]
    shown = ""
    for path in paths:
        text = (await visitor.see(path)).text
        assert "<script>" not in text, path
        assert "onerror=alert(1)>" not in text, path
        shown += text
    assert shown.count("&lt;script&gt;fetch(") >= 5  # and it is shown, not left out


async def test_html_of_a_mail_comes_alone_and_powerless(console):
    """The HTML of a mail is answered as it is, under a policy that lets it load and run nothing."""
    served, visitor = console
    delivery_id = await accept(served, payload={"html": HARMFUL_HTML})
    answer = await visitor.see(f"/deliveries/{delivery_id}/message/html")
    assert "<script>alert(1)</script>" in answer.text
    policy = dict(
        part.split(" ", 1) if " " in part else (part, "")
        for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["sandbox"] == ""
    assert policy["default-src"] == "'none'"
    assert policy["img-src"] == "data:"
    assert "script-src" not in policy
    assert policy["frame-ancestors"] == "'self'"
    page = (await visitor.see(f"/deliveries/{delivery_id}/message")).text
    assert re.search(r'<iframe class="mail" sandbox title', page)


async def test_login_codes_and_erased_content_are_not_shown(console, next_hop, dsn):
    """Neither a waiting login code nor content that is erased or not there is shown; the page says why."""
    served, visitor = console
    next_hop.reply = "450 4.3.2 Not now"
    answer = await served.post(LOGIN_CODES, login_code(code="739182"), key="k")
    code_id = answer.json()["delivery_id"]
    await served.settled(code_id, "rendered", attempts=1)
    for path in (
        f"/deliveries/{code_id}",
        *(f"/deliveries/{code_id}/message?view={view}" for view in ("html", "text", "source")),
    ):
        assert "739182" not in (await visitor.see(path)).text
    assert "sensitive mail is not shown" in (await visitor.see(f"/deliveries/{code_id}/message")).text
    assert (await visitor.see(f"/deliveries/{code_id}/message/html")).status_code == 404
    next_hop.reply = "250 2.1.5 Ok"
    erased = await accept(served)
    await served.settled(erased, "sent")
    await execute(dsn, "DELETE FROM mail.payloads WHERE delivery_id = $1::uuid", erased)
    assert "is erased" in (await visitor.see(f"/deliveries/{erased}/message")).text
    assert "ann@" not in (await visitor.see("/deliveries")).text


async def test_content_that_is_sealed_is_opened_to_be_looked_at(serve, tmp_path):
    """A message at rest under a key is shown by a process that has the key."""
    keys = tmp_path / "keys"
    keys.write_text(f"{new_key('k1')}\n")
    keys.chmod(0o600)
    served = await serve(MAIL_PAYLOAD_KEYS_FILE=str(keys), **CONSOLE)
    visitor = Visitor(served)
    delivery_id = await accept(served)
    assert "It works." in (await visitor.see(f"/deliveries/{delivery_id}/message?view=text")).text
    await visitor.client.aclose()


async def test_a_fault_is_a_page(console):
    """What is not there, what can't be asked and what is too large is told on a page, and changes nothing."""
    _, visitor = console
    for path in (
        f"/deliveries/{UNKNOWN}",
        "/deliveries/no-id",
        f"/malformed/{UNKNOWN}",
        "/templates/nothing",
        "/inbox",
    ):
        assert (await visitor.see(path)).status_code == 404
    for query in ("status=never", "q=ann", "recipient=ann", "since=soon", "cursor=x", "class=all"):
        answer = await visitor.see(f"/deliveries?{query}")
        assert (answer.status_code, 'role="alert"' in answer.text) == (400, True), query
    assert (await visitor.see("/malformed?code=none")).status_code == 400
    assert (await visitor.see("/templates/login-code?locale=%3C%3E")).status_code == 400
    fields = await visitor.fields("/routes")
    assert (await visitor.send("/routes/flush", fields | {"reason": "x" * MAX_FORM_BYTES})).status_code == 403
    assert (
        await visitor.send("/routes/flush", fields | {"reason": "x", "next_hop": "none"})
    ).status_code == 403
    assert (await visitor.client.get("/routes/flush")).status_code == 405


# -- who is let in -------------------------------------------------------------------------------------------------


async def test_only_names_of_this_machine_lead_to_an_open_console(console):
    """Without tokens a request under another name is refused, whatever it asks for: DNS rebinding."""
    _, visitor = console
    for host in ("rebound.example", "127.0.0.1.example", "", "[::2]"):
        assert (await visitor.client.get("/", headers={"host": host})).status_code in (400, 421)
    for host in ("localhost:1", "127.0.0.9", "[::1]:80"):
        assert (await visitor.client.get("/", headers={"host": host})).status_code == 200


async def test_tokens_open_the_console_and_nothing_else_does(serve, log_lines):
    """With tokens nothing is shown before a login; a login is recorded with the name given, and ends with its cookie."""
    served = await serve(MAIL_INTERNAL_HTTP_TOKENS=f"another-canary-token,{TOKEN}", **CONSOLE)
    visitor = Visitor(served)
    for path in PAGES:
        answer = await visitor.see(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login"), path
    part = await visitor.client.get("/live", headers={"hx-request": "true"})
    assert (part.status_code, part.headers["hx-redirect"]) == (204, "/login")
    page = await visitor.see("/login")
    assert "Deliveries" not in page.text
    fields = await visitor.fields("/login")
    for wrong in ("", "wrong", TOKEN[:-1], TOKEN + "x"):
        assert (await visitor.send("/login", fields | {"token": wrong})).status_code == 401
    assert "login refused" in {line["event"] for line in log_lines}
    answer = await visitor.send("/login", fields | {"token": TOKEN, "name": "Ann"})
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Secure" not in cookie
    assert TOKEN not in cookie + str(log_lines)
    assert "Log out Ann" in (await visitor.see("/")).text
    out = await visitor.send("/logout", {"csrf": (await visitor.fields("/"))["csrf"]})
    assert "Max-Age=0" in out.headers["set-cookie"]
    assert (await visitor.see("/")).status_code == 303
    visitor.client.cookies.clear()
    elsewhere = await visitor.client.get("/login", headers={"host": "mail.example.org"})
    assert "Secure" in elsewhere.headers["set-cookie"]
    await visitor.client.aclose()


@pytest.mark.parametrize(
    "fault", ["no token", "another's token", "no origin", "another origin", "no cookie", "no reason", "json"]
)
async def test_a_form_that_is_not_ours_changes_nothing(console, dsn, fault):
    """A change needs a page of this session, our own origin and a reason; else it is refused and nothing is recorded."""
    served, visitor = console
    delivery_id = await scheduled(served)
    path = f"/deliveries/{delivery_id}"
    fields = await visitor.fields(path) | {"reason": "because"}
    options = {}
    match fault:
        case "no token":
            fields.pop("csrf")
        case "another's token":
            other = Visitor(served)
            fields["csrf"] = (await other.fields(path))["csrf"]
            await other.client.aclose()
        case "no origin":
            options["origin"] = ""
        case "another origin":
            options["origin"] = "http://rebound.example"
        case "no cookie":
            visitor.client.cookies.clear()
        case "no reason":
            fields["reason"] = " "
        case "json":
            options["content-type"] = "application/json"
    assert (await visitor.send(f"{path}/hold", fields, **options)).status_code == 403
    assert await changes(dsn) == []
    visitor.client.cookies.clear()
    assert (await visitor.act(path, f"{path}/hold")).status_code == 303  # as it should be, it works


async def test_a_cookie_that_was_touched_is_a_new_visit(console):
    """A cookie with any character changed, or of another deployment, gives no session."""
    _, visitor = console
    await visitor.see("/")
    ((name, value),) = visitor.client.cookies.items()
    for touched in (
        value[:-1] + ("0" if value[-1] != "0" else "1"),
        "A" + value[1:],
        value + "é",
        "x" * 5000,
        ".",
    ):
        headers = {"cookie": f"{name}={touched}".encode()}
        answer = await visitor.client.get("/", headers=headers)
        assert name in answer.headers.get("set-cookie", ""), touched


# -- what can be done ----------------------------------------------------------------------------------------------


async def test_changes_are_recorded_with_who_and_why(console, dsn):
    """Hold, release, flush, cancel and delete do what they say; one that does not apply says where the delivery stands."""
    served, visitor = console
    delivery_id = await scheduled(served)
    path = f"/deliveries/{delivery_id}"
    for verb in ("hold", "release", "cancel"):
        answer = await visitor.act(path, f"{path}/{verb}", reason=f"for {verb}")
        assert (answer.status_code, answer.headers["location"]) == (303, f"{path}?said={verb}")
    answer = await visitor.act(path, f"{path}/hold")
    assert (answer.status_code, "is cancelled" in answer.text) == (409, True)
    assert await changes(dsn) == [(verb, "console", f"for {verb}") for verb in ("hold", "release", "cancel")]
    page = (await visitor.see(path)).text
    assert "for hold" in page
    assert "ann@example.org" in (await visitor.see(f"{path}/message")).text
    await visitor.act(path, f"{path}/delete")
    assert "is erased" in (await visitor.see(f"{path}/message")).text
    assert "/resend" not in (await visitor.see(path)).text
    due = await scheduled(served)
    await visitor.act(f"/deliveries/{due}", f"/deliveries/{due}/flush")
    await served.settled(due, "sent")
    assert (await visitor.act("/routes", "/routes/flush", next_hop="default", force="1")).status_code == 303


async def test_dead_letters_are_sent_again_once(console, next_hop):
    """Chosen dead letters become one new delivery each, however often the form is sent; what can't be is told."""
    served, visitor = console
    dead = [await dead_letter(served, next_hop) for _ in range(2)]
    waiting = await scheduled(served)
    page = (await visitor.see("/dead-letters")).text
    assert all(f'value="{each}"' in page for each in dead)
    fields = await visitor.fields("/dead-letters") | {"reason": "mended", "id": [*dead, waiting, UNKNOWN]}
    results = [(await visitor.send("/dead-letters/redrive", fields)).text for _ in range(2)]
    made = [re.findall(r'class="id row" href="/deliveries/([^"]+)"', text) for text in results]
    assert made[0] == made[1]
    assert len(set(made[0])) == 2
    assert "it is rendered" in results[0]
    assert "no delivery has the id" in results[0]
    for each in made[0]:
        assert (await served.settled(each, "sent"))["parent_id"] in dead
    assert "sent again before" in results[1]
    assert "sent again before" not in results[0]
    fields = await visitor.fields("/dead-letters") | {"reason": "all", "id": dead * MAX_REDRIVEN}
    assert (await visitor.send("/dead-letters/redrive", fields)).status_code in (200, 403)


async def test_all_dead_letters_that_fit_are_sent_again_once(console, next_hop, dsn):
    """A redrive by filter takes what was not sent again before, and records who and why; a bad filter changes nothing."""
    served, visitor = console
    dead = [await dead_letter(served, next_hop) for _ in range(3)]
    await visitor.act("/dead-letters", "/dead-letters/redrive", id=dead[0])
    page = await visitor.act(
        "/dead-letters?class=transactional", "/dead-letters/redrive-all", reason="mended"
    )
    assert "2 sent again" in page.text
    assert "1 had been sent again before" in page.text
    assert ("resend", "console", "mended") in await changes(dsn)
    assert (
        await visitor.act("/dead-letters", "/dead-letters/redrive-all", **{"class": "none"})
    ).status_code == 422
    other = await visitor.act("/dead-letters", "/dead-letters/redrive-all", **{"class": "relay"})
    assert "0 sent again" in other.text
    assert "redrive-all" not in (await visitor.see("/dead-letters?recipient=ann@example.org")).text


async def test_a_resend_shows_the_new_delivery(console):
    """Sending again leads to the delivery that was made, and a second click to the same one."""
    served, visitor = console
    delivery_id = await accept(served)
    await served.settled(delivery_id, "sent")
    path = f"/deliveries/{delivery_id}"
    fields = await visitor.fields(path) | {"reason": "lost it"}
    places = {(await visitor.send(f"{path}/resend", fields)).headers["location"] for _ in range(2)}
    assert len(places) == 1
    assert delivery_id[-12:] in (await visitor.see(places.pop())).text


async def test_searches_lead_where_they_should(console):
    """An id leads to its delivery, an address and each filter to a list of its own; lists go on with older ones."""
    served, visitor = console
    mine = await accept(served, payload={"to": ["me@example.org"]})
    others = [await accept(served) for _ in range(51)]
    await served.settled(mine, "sent")
    answer = await visitor.see("/deliveries", q=f" {mine} ")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/deliveries/{mine}")

    async def ids(**parameters):
        return re.findall(
            r'class="id row" href="/deliveries/([^"]+)"',
            (await visitor.see("/deliveries", **parameters)).text,
        )

    assert await ids(q="me@example.org") == [mine]
    assert await ids(
        recipient="ME@example.org", status="sent", source="api", **{"class": "transactional"}
    ) == [mine]
    assert await ids(recipient="me@example.org", status="waiting") == []
    assert await ids(until="2020-01-01T00:00") == []
    first = (await visitor.see("/deliveries", source="api")).text
    older = re.search(r'href="/deliveries\?([^"]+)" rel="next"', unescape(first))[1]
    rest = (await visitor.see(f"/deliveries?{older}")).text
    assert mine[-12:] in rest
    assert "source=api" in older
    assert others[-1][-12:] not in rest


async def malformed_record(visitor, dsn, **fields):
    """Have a command refused and return the address of its page."""
    command = {
        "payload_mode": "rendered",
        "payload": {"to": ["ann@example.org"], "subject": "s", "text": "t"},
    }
    before = set(re.findall(r'href="(/malformed/[^"]+)"', (await visitor.see("/malformed")).text))
    await execute(dsn, "SELECT mail.enqueue($1::jsonb)", json.dumps(command | fields))
    async with asyncio.timeout(60):
        while True:
            found = set(re.findall(r'href="(/malformed/[^"]+)"', (await visitor.see("/malformed")).text))
            if found - before:
                return (found - before).pop()
            await asyncio.sleep(0.05)


async def test_a_malformed_command_is_repaired_and_taken(console, dsn, log_lines):
    """A replay with repairs makes the delivery; a bad repair or a second one changes nothing; who asked is logged."""
    served, visitor = console
    path = await malformed_record(visitor, dsn, colour="blue")
    page = (await visitor.see(path)).text
    assert ">colour=</textarea>" in page  # the field that is wrong stands there to be repaired
    assert (await visitor.act(path, f"{path}/replay", repairs="colour")).status_code == 403
    assert (await visitor.act(path, f"{path}/replay", repairs="colour=")).status_code == 303
    async with asyncio.timeout(60):
        while (live := await visitor.see(f"{path}/live")).status_code != 286:
            await asyncio.sleep(0.05)
    delivery_id = re.search(r'href="/deliveries/([^"]+)"', live.text)[1]
    await served.settled(delivery_id, "sent")
    assert "textarea" not in (await visitor.see(path)).text
    assert (await visitor.act("/routes", f"{path}/replay", repairs="")).status_code == 403
    assert (await visitor.see(f"/malformed/{UNKNOWN}/live")).status_code == 404
    logged = [line for line in log_lines if line["event"] == "replay asked by hand"]
    assert [(line["actor"], line["count"]) for line in logged] == [("console", 1)]


async def test_commands_of_one_failure_are_taken_again_together(console, dsn):
    """What was mended here lets all of a failure be taken again; of others nothing is asked."""
    _, visitor = console
    paths = [await malformed_record(visitor, dsn, template_id=None, colour=str(n)) for n in range(2)]
    assert "Take them again" not in (await visitor.see("/malformed")).text
    assert "Take them again" in (await visitor.see("/malformed?code=unknown_field")).text
    csrf = {"csrf": (await visitor.fields("/routes"))["csrf"]}
    none = await visitor.send("/malformed/replay", csrf | {"code": "missing_field"})
    assert none.headers["location"] == "/malformed?said=no+replays"
    assert (await visitor.send("/malformed/replay", csrf | {"code": ""})).status_code == 422
    asked = await visitor.send("/malformed/replay", csrf | {"code": "unknown_field"})
    assert asked.headers["location"] == "/malformed?said=replays"
    for path in paths:
        async with asyncio.timeout(60):
            while "Its last replay was refused" not in (await visitor.see(path)).text:
                await asyncio.sleep(0.05)


async def test_addresses_are_suppressed_and_let_go(console, next_hop, dsn):
    """What a server or a person suppressed is listed, found and removed, with who and why; nothing is added twice."""
    served, visitor = console
    next_hop.reply = "550 5.1.1 No such user"
    bounced = await accept(served, payload={"to": ["gone@example.org"]})
    await served.settled(bounced, "failed")
    next_hop.reply = "250 2.1.5 Ok"
    add = {"address": "Bo@Example.org", "kind": "complaint", "for": "30d", "reason": "asked us to stop"}
    first = await visitor.act("/suppressions", "/suppressions/add", **add)
    again = await visitor.act("/suppressions", "/suppressions/add", **add | {"for": "7d"})
    assert first.headers["location"] == "/suppressions?said=suppressed"
    assert "It was suppressed for as long already" in unescape(
        (await visitor.client.get(again.headers["location"])).text
    )
    page = (await visitor.see("/suppressions")).text
    for shown in (
        "gone@example.org",
        bounced[-12:],
        "550",
        "Bo@example.org",
        "complaint",
        "asked us to stop",
        "in 30 d",
    ):
        assert shown in page, shown
    assert "gone@" not in (await visitor.see("/suppressions", recipient="Bo@example.org")).text
    assert "gone@" in (await visitor.see("/suppressions", reason="hard_bounce")).text
    for wrong in ({"address": "bo"}, {"kind": "dislike"}, {"for": "1h"}, {"reason": " "}):
        answer = await visitor.act("/suppressions", "/suppressions/add", **add | wrong)
        assert answer.status_code in (403, 422), wrong
    for query in ("recipient=bo", "reason=dislike", "cursor=x"):
        assert (await visitor.see(f"/suppressions?{query}")).status_code == 400
    place = re.search(r'action="(/suppressions/[^"]+/remove)"', page[page.index("gone@") :])[1]
    assert (await visitor.act("/suppressions", place, reason="mailbox is back")).status_code == 303
    assert (await visitor.act("/suppressions", place)).status_code == 404
    assert "gone@" not in (await visitor.see("/suppressions")).text
    assert await changes(dsn) == [
        ("suppress", "console", "asked us to stop"),
        ("unsuppress", "console", "mailbox is back"),
    ]
    again = await accept(served, payload={"to": ["gone@example.org"]})
    await served.settled(again, "sent")


async def test_events_go_on_after_a_cursor(console, next_hop):
    """Events are shown newest first, by type, and from a cursor on to newer ones; a bad cursor or type is told."""
    served, visitor = console
    sent = [await accept(served) for _ in range(3)]
    for each in sent:
        await served.settled(each, "sent")
    next_hop.reply = "550 5.1.1 No such user"
    failed = await accept(served, payload={"to": ["gone@example.org"]})
    await served.settled(failed, "failed")

    async def ids(**parameters):
        page = (await visitor.see("/events", **parameters)).text
        return re.findall(r'class="id row" href="/deliveries/([^"]+)"', page)

    shown = await ids()
    assert (shown[0], set(shown)) == (failed, {*sent, failed})
    assert await ids(type="delivery.failed") == [failed]
    page = unescape((await visitor.see("/events?after=0-0")).text)
    assert "hx-get" not in page  # a page in the past does not move
    cursor = re.search(r"after=([0-9a-f]+-[0-9a-f]+)\" rel=\"next", page)[1]
    assert await ids(after=cursor) == []
    next_hop.reply = "250 2.1.5 Ok"
    newer = await accept(served)
    await served.settled(newer, "sent")
    assert await ids(after=cursor) == [newer]
    for query in ("after=x", "type=delivery.born"):
        assert (await visitor.see(f"/events?{query}")).status_code == 400


async def test_the_doctor_says_what_is_wrong_and_what_to_do(console, next_hop):
    """Each incident has its severity, findings with evidence and next step, and its checks; one look is shared."""
    served, visitor = console
    next_hop.reply = "451 4.3.0 Local error"
    await served.settled(await accept(served), "dead_letter")
    first, second = await asyncio.gather(visitor.see("/doctor"), visitor.see("/doctor"))
    assert first.text == second.text
    text = unescape(first.text)
    for incident in ("backlog", "dead-letters", "suppressed", "auth", "timeouts", "malformed"):
        assert f'id="{incident}"' in text
    assert "451 4.3.0" in text
    assert "Next:" in text
    assert "ann@" not in text
    assert (await visitor.see("/doctor?since=1y")).status_code == 400


async def test_throughput_is_that_of_the_replicas(console):
    """What was accepted and attempted shows up in the charts of the overview, by what heartbeats told."""
    served, visitor = console
    async with asyncio.timeout(90):
        while not {"blue", "green"} <= set(
            re.findall(r'class="area (\w+)" d="M', (await visitor.see("/live")).text)
        ):
            await served.settled(await accept(served), "sent")
            await asyncio.sleep(0.2)


async def test_templates_are_shown_as_readers_get_them(console):
    """A template shows its examples in each locale, and which one a reader of another gets."""
    _, visitor = console
    german = (await visitor.see("/templates/order-confirmation", locale="de-AT")).text
    assert "de-AT → de" in german
    assert (
        "sandbox"
        in (await visitor.see("/templates/order-confirmation/html", locale="de")).headers[
            "content-security-policy"
        ]
    )
    assert "this reader gets" not in (await visitor.see("/templates/order-confirmation", locale="de")).text


async def test_the_inbox_shows_what_the_sinkhole_took(serve, log_lines):
    """Where a sinkhole is configured its messages, what was said, and its mode are pages; changing it is logged."""
    sinkhole = Sinkhole(FixedModeSource(parse_mode("accept")), transcripts=Transcripts())
    await sinkhole.start()
    api = HttpListener(SinkholeApi(sinkhole), "127.0.0.1", 0)
    await api.start()
    served = await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=f"127.0.0.1:{sinkhole.port}",
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
        MAIL_SINKHOLE_ADDR=f"127.0.0.1:{sinkhole.port}",
        MAIL_SINKHOLE_URL=f"http://127.0.0.1:{api.port}",
        **CONSOLE,
    )
    visitor = Visitor(served)
    payload = {"to": ["ann@sinkhole.test"], "subject": f"Grüße {HARM}", "text": "hi", "html": HARMFUL_HTML}
    await served.settled(await accept(served, payload=payload), "sent")
    page = (await visitor.see("/inbox")).text
    assert "Grüße &lt;script&gt;" in page
    assert "<script>fetch" not in page
    place = re.search(r'class="row" href="(/inbox/[^"]+)"', page)[1]
    assert "ann@sinkhole.test" in (await visitor.see(place)).text
    for view in ("text", "source"):
        assert "<script>alert" not in (await visitor.see(place, view=view)).text
    assert "sandbox" in (await visitor.see(f"{place}/html")).headers["content-security-policy"]
    said = re.search(r'href="(/inbox/connections/[^"]+)"', (await visitor.see(place)).text)[1]
    assert "MAIL FROM" in (await visitor.see(said)).text
    assert (await visitor.act("/inbox", "/inbox/mode", mode="defer-2x")).status_code == 303
    assert str(sinkhole.source.current()) == "defer-2x"
    assert (await visitor.act("/inbox", "/inbox/mode", mode="dance")).status_code == 403
    assert (await visitor.act("/inbox", "/inbox/empty")).status_code == 303
    assert "Nothing yet" in (await visitor.see("/inbox/live")).text
    assert [line["actor"] for line in log_lines if line["event"] == "sinkhole changed by hand"] == [
        "console"
    ] * 2
    await api.stop(1.0)
    await sinkhole.stop()
    assert (await visitor.see("/inbox")).status_code == 502
    await visitor.client.aclose()


async def test_the_console_starts_and_stops_with_the_service(serve, log_lines):
    """Both have a line; where no address is set there is no console."""
    without = await serve()
    assert without.service.console_address is None
    served = await serve(**CONSOLE)
    await served.service.stop()
    events = [line["event"] for line in log_lines]
    assert events.count("console started") == events.count("console stopped") == 1
    with pytest.raises(OSError, match=r".*"):
        await asyncio.open_connection("127.0.0.1", served.service.console_address.port)


async def test_pages_say_when_postgresql_is_away(console, dsn):
    """While PostgreSQL does not answer pages say so; afterwards they are there again."""
    _, visitor = console
    name = urlsplit(dsn).path[1:]
    maintenance = await asyncpg.connect(urlsplit(dsn)._replace(path="/postgres").geturl())
    try:
        await maintenance.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await maintenance.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
        )
        assert (await visitor.see("/deliveries")).status_code == 503
    finally:
        await maintenance.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await maintenance.close()
    async with asyncio.timeout(60):
        while (await visitor.see("/deliveries")).status_code != 200:
            await asyncio.sleep(0.1)
