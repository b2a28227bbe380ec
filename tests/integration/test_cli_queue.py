"""`mailkeep queue` and `mailkeep send` as a user runs them: processes of their own against a running service."""

import asyncio
import json
import os
from uuid import UUID

import pytest
from http_kit import DELIVERIES

from nursery import ran

DEFERRED = "450 4.3.2 Not now, <ann@example.org>"
REFUSED = "550 5.1.1 No such user"
EXIT_FAILED, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_CONFIG = 1, 2, 69, 78


class Ran:
    """What a command did: exit code, lines of standard output, standard error."""

    def __init__(self, code, output, errors):
        self.code, self.output, self.errors = code, output, errors

    @property
    def lines(self):
        return self.output.splitlines()

    def json(self):
        return json.loads(self.output)


async def run(environ, *arguments):
    """Run `mailkeep` with `environ` as its whole configuration."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("MAIL_")}
    code, output, errors = await asyncio.to_thread(ran, [*map(str, arguments)], bare | environ)
    return Ran(code, output.decode(), errors.decode())


@pytest.fixture
def environ(dsn, sending):
    """The settings of an operator beside the running service."""
    return {"MAIL_POSTGRES_DSN": dsn, "MAIL_INTERNAL_HTTP_ADDR": f"127.0.0.1:{sending.port}"}


async def deferred(environ, sending, next_hop, *arguments):
    """Send a mail that the next hop defers, and return its id."""
    next_hop.reply = DEFERRED
    arguments = arguments or ("--to", "ann@example.org", "--subject", "Hello", "--text", "It works.")
    ran = await run(environ, "send", *arguments)
    assert ran.code == 0, ran.errors
    await sending.settled(ran.output.strip(), "rendered")
    next_hop.reply = "250 Ok"
    return ran.output.strip()


async def test_the_queue_is_listed_like_mailq(environ, sending, next_hop):
    """A waiting delivery is one line with id, class, status, masked recipient and reason; an empty queue says so."""
    assert (await run(environ, "queue")).lines == ["The queue is empty."]
    delivery_id = await deferred(environ, sending, next_hop)
    relayed = (
        "--to",
        "bo@example.org",
        "--to",
        "cy@example.org",
        "--subject",
        "x",
        "--text",
        "y",
        "--class",
        "relay",
    )
    second = await deferred(environ, sending, next_hop, *relayed)
    listed = await run(environ, "queue")
    titles, *rows, total = listed.lines
    assert titles.split("  ")[0] == "ID"
    assert [row.split()[0] for row in rows] == [delivery_id, second]
    for word in ("transactional", "rendered", "a***@e***", "450 4.3.2 Not now"):
        assert word in rows[0]
    assert "b***@e*** +1" in rows[1]
    assert total.startswith("-- 2 deliveries, ")
    assert "ann@" not in listed.output
    assert (await run(environ, "queue", "--limit", 1)).lines[-1].endswith("there are more (--limit 10000)")


async def test_the_queue_is_filtered(environ, sending, next_hop):
    """Class, domain, status, rule and recipient choose; the JSON holds what the table shows."""
    delivery_id = await deferred(environ, sending, next_hop)
    for matching in (
        ("--class", "transactional"),
        ("--domain", "Example.org"),
        ("--next-hop", "default"),
        ("--status", "waiting"),
        ("--status", "held", "--status", "rendered"),
        ("--rule", "rcpt_deferred"),
        ("--recipient", "Ann@example.org"),
    ):
        ran = await run(environ, "queue", *matching, "--json")
        assert [delivery["delivery_id"] for delivery in ran.json()] == [delivery_id], matching
    for other in (("--class", "relay"), ("--status", "held"), ("--recipient", "bo@example.org")):
        assert (await run(environ, "queue", *other)).lines == ["Nothing in the queue matches."]


@pytest.mark.parametrize(
    "arguments",
    [("--status", "sent"), ("--status", "x"), ("--class", "x"), ("--domain", "a b"), ("--recipient", "x")],
)
async def test_a_filter_that_makes_no_sense_is_wrong_usage(dsn, arguments):
    """A bad filter is exit code 2 and one line that names it."""
    ran = await run({"MAIL_POSTGRES_DSN": dsn}, "queue", *arguments)
    assert ran.code == EXIT_USAGE
    assert arguments[0].removeprefix("--") in ran.errors
    assert "Traceback" not in ran.errors


async def test_one_delivery_is_shown_with_its_dialog(environ, sending, next_hop):
    """`queue show` tells the delivery and each attempt with the steps of its dialog, addresses masked."""
    delivery_id = await deferred(environ, sending, next_hop)
    shown = await run(environ, "queue", "show", delivery_id)
    assert shown.lines[0].split() == ["id", delivery_id]
    for words in ("a***@e***: open", "attempt 1", "provider_rejected at rcpt", "RCPT TO:<…> -> 450 4.3.2"):
        assert words in shown.output
    assert "ann@" not in shown.output
    as_json = (await run(environ, "queue", "show", delivery_id, "--json")).json()
    assert as_json["delivery"]["delivery_id"] == delivery_id
    assert as_json["attempts"][0]["steps"][0]["phase"] == "connect"
    unknown = await run(environ, "queue", "show", UUID(int=0))
    assert (unknown.code, unknown.output) == (EXIT_FAILED, "")


async def test_a_flush_sends_at_once(environ, sending, next_hop):
    """`queue flush` makes the running service send what waits; what is over can't be flushed."""
    delivery_id = await deferred(environ, sending, next_hop)
    assert (
        await run(environ, "queue", "flush", "--domain", "elsewhere.org")
    ).output == "0 deliveries are due now\n"
    assert (await run(environ, "queue", "flush", "--all", "--json")).json() == {"flushed": 1}
    await sending.settled(delivery_id, "sent")
    over = await run(environ, "queue", "flush", "--id", delivery_id)
    assert over.code == EXIT_FAILED
    assert delivery_id in over.errors


async def test_every_change_by_hand_is_shown_with_who_when_and_why(environ, sending, next_hop):
    """`queue show` lists hold, release, flush, cancel and delete in their order, each with its actor and its reason."""
    delivery_id = await deferred(environ, sending, next_hop)
    next_hop.reply = DEFERRED
    await changed(environ, "hold", delivery_id)
    await changed(environ, "release", delivery_id)
    await sending.settled(delivery_id, "rendered", attempts=2)
    await changed(environ, "flush", "--id", delivery_id)
    await sending.settled(delivery_id, "rendered", attempts=3)
    for verb in ("cancel", "delete"):
        await changed(environ, verb, delivery_id)
    shown = [line.split() for line in (await run(environ, "queue", "show", delivery_id)).lines]
    changes = [(words[3], " ".join(words[4:])) for words in shown if words[:1] == ["change"]]
    assert changes == [
        (verb, f"by ann: why {verb}") for verb in ("hold", "release", "flush", "cancel", "delete")
    ]
    as_json = (await run(environ, "queue", "show", delivery_id, "--json")).json()["changes"]
    assert [(change["verb"], change["status"]) for change in as_json] == [
        ("delete", "cancelled"), ("cancel", "cancelled"), ("flush", "rendered"), ("release", "rendered"), ("hold", "held"),
    ]  # fmt: skip
    assert "cancelled by ann" in (await run(environ, "explain", delivery_id)).output


async def changed(environ, verb, *arguments):
    """Change by hand as ann."""
    ran = await run(environ, "queue", verb, *arguments, "--as", "ann", "--reason", f"why {verb}")
    assert ran.code == 0, ran.errors


async def test_the_queue_in_the_form_of_mailq(environ, sending, next_hop):
    """`--mailq` prints what scripts for Postfix read: queue id first in the line, reason in parentheses, the closing count."""
    assert (await run(environ, "queue", "--mailq")).lines == ["Mail queue is empty"]
    delivery_id = await deferred(environ, sending, next_hop)
    await changed(environ, "hold", delivery_id)
    title, first, reason, recipient, empty, total = (await run(environ, "queue", "--mailq")).lines
    assert title.startswith("-Queue ID-")
    assert first.split()[0] == f"{delivery_id}!"
    assert (reason, recipient.strip(), empty) == ("(why hold)", "a***@e***", "")
    assert total == "-- 0 Kbytes in 1 Request."


@pytest.mark.parametrize("arguments", [(), ("--all", "--domain", "example.org"), ("--id", "x")])
async def test_a_flush_says_exactly_what_it_means(dsn, arguments):
    """None or several of the choices, or an id that is none, is wrong usage."""
    ran = await run({"MAIL_POSTGRES_DSN": dsn}, "queue", "flush", *arguments)
    assert ran.code == EXIT_USAGE


async def test_without_a_database_one_line_says_so():
    """No DSN, and a database that is away, each end in one clear line, without the password."""
    ran = await run({}, "queue")
    assert (ran.code, ran.output) == (EXIT_CONFIG, "")
    assert "MAIL_POSTGRES_DSN" in ran.errors
    ran = await run({"MAIL_POSTGRES_DSN": "postgresql://mail:canary@127.0.0.1:1/mail"}, "queue")
    assert (ran.code, ran.output) == (EXIT_UNAVAILABLE, "")
    assert len(ran.errors.splitlines()) == 1
    assert "canary" not in ran.errors


# -- send --------------------------------------------------------------------------------------------------------


async def test_send_follows_a_mail_until_it_is_sent(environ, next_hop, tmp_path):
    """`send --wait` prints the id, the attempts and how it ended; the mail has text, html and attachment."""
    (tmp_path / "hello.html").write_text("<p>It works.</p>")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    ran = await run(
        environ,
        *("send", "--to", "ann@example.org", "--subject", "Hello", "--text", "It works.", "--wait"),
        *("--html-file", tmp_path / "hello.html", "--attach", tmp_path / "a.pdf"),
    )
    assert ran.code == 0, ran.errors
    delivery_id, *attempts, ended = ran.lines
    assert UUID(delivery_id).version == 7
    assert attempts[0].startswith("attempt 1 ")
    assert ended == "sent"
    (message,) = next_hop.messages
    for part in (b"text/html", b"application/pdf", b"a.pdf"):
        assert part in message.content


async def test_send_renders_a_template(environ, sending):
    """With --template the variables, the locale and the class go along; the same --key is the same delivery."""
    arguments = (
        *("send", "--to", "ann@example.org", "--template", "welcome", "--locale", "de", "--class", "relay"),
        *("--var", "product=Notes", "--var", "start_url=https://example.com/?a=b", "--key", "k", "--json"),
    )
    first, again = [(await run(environ, *arguments)).json() for _ in range(2)]
    assert first == again
    delivery = (await sending.get(f"{DELIVERIES}/{first['delivery_id']}")).json()
    assert (delivery["template_id"], delivery["locale"], delivery["class"]) == ("welcome", "de", "relay")


async def test_a_mail_that_is_not_sent_is_no_success(environ, next_hop):
    """`send --wait` ends with 1 when the mail is refused for good, suppressed, or still waits when the time is over."""
    mail = ("send", "--subject", "Hello", "--text", "It works.", "--wait", "--to")
    next_hop.reply = REFUSED
    for ending in ("failed", "suppressed"):
        ran = await run(environ, *mail, "ann@example.org")
        assert (ran.code, ran.lines[-1]) == (EXIT_FAILED, ending)
        assert "550 5.1.1" in ran.output
    next_hop.reply = DEFERRED
    mail = (*mail, "bo@example.org")
    ran = await run(environ, *mail, "--timeout", 1)
    assert (ran.code, ran.lines[-1]) == (EXIT_FAILED, "still rendered after 1 s")
    ran = await run(environ, *mail, "--timeout", 1, "--json")
    assert ran.code == EXIT_FAILED
    assert ran.json()["delivery"]["status"] == "rendered"


async def test_a_refused_command_names_the_field(environ):
    """What the service refuses ends with 1 and the field; a variable without a value is wrong usage."""
    ran = await run(environ, "send", "--to", "nobody", "--subject", "x", "--text", "y")
    assert (ran.code, ran.output) == (EXIT_FAILED, "")
    assert "payload.to[0]" in ran.errors
    ran = await run(environ, "send", "--to", "ann@example.org")
    assert "payload.subject" in ran.errors
    ran = await run(environ, "send", "--to", "ann@example.org", "--template", "welcome", "--var", "product")
    assert ran.code == EXIT_USAGE


async def test_send_shows_its_token_and_needs_a_service(serve):
    """With tokens configured the first is shown; a service that is not there is exit code 69."""
    token = "a-token-long-enough"
    served = await serve(MAIL_INTERNAL_HTTP_TOKENS=token)
    address = {"MAIL_INTERNAL_HTTP_ADDR": f"127.0.0.1:{served.port}"}
    mail = ("send", "--to", "ann@example.org", "--subject", "Hello", "--text", "It works.")
    assert (await run(address | {"MAIL_INTERNAL_HTTP_TOKENS": token}, *mail)).code == 0
    assert (await run(address, *mail)).code == EXIT_FAILED
    await served.service.stop()
    ran = await run(address, *mail)
    assert ran.code == EXIT_UNAVAILABLE
    assert len(ran.errors.splitlines()) == 1
