"""The sinkhole's HTTP API, asked by a client that is not ours, and the commands that ask it."""

import asyncio
import contextlib
import json
import os
import smtplib
import ssl
import subprocess
import sys

import httpx2
import pytest
from typer.testing import CliRunner

from mailkeep.cli.sinkhole import app
from mailkeep.intake.listener import HttpListener
from mailkeep.sinkhole.api import MAX_BODY_BYTES, SinkholeApi
from mailkeep.sinkhole.capture import Capture
from mailkeep.sinkhole.mode_source import FileModeSource, FixedModeSource
from mailkeep.sinkhole.report import now_utc
from mailkeep.sinkhole.script import parse_mode
from mailkeep.sinkhole.server import Sinkhole
from mailkeep.sinkhole.session import Credentials
from mailkeep.sinkhole.transcripts import MAX_LINE_CHARS, MAX_LINES, Line, Speaker, Transcripts

TOKEN = "a-canary-token-of-the-sinkhole"
PASSWORD = "a-canary-secret"
MESSAGE = "Subject: Gr\r\n u\xdfe\r\nMessage-ID: <1@a.test>\r\n\r\nhi \x1b[31m\r\n".encode()
PATIENCE_S = 60


@pytest.fixture
async def served():
    """Give a starter of sinkholes with their API, and a client of it."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(source=None, *, token=None, **options):
            made = Sinkhole(
                source or FixedModeSource(parse_mode("accept")), **{"transcripts": Transcripts()} | options
            )
            await made.start()
            stack.push_async_callback(made.stop)
            listener = HttpListener(SinkholeApi(made, token), "127.0.0.1", 0)
            await listener.start()
            stack.push_async_callback(listener.stop, 1.0)
            client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{listener.port}", timeout=PATIENCE_S)
            return made, await stack.enter_async_context(client)

        yield start


async def converse(made, *recipients, message=MESSAGE):
    """Send one message with the standard library's client, in a thread."""

    def send():
        connection = smtplib.SMTP("127.0.0.1", made.port, "c.test", timeout=PATIENCE_S)
        with connection as client, contextlib.suppress(smtplib.SMTPException):
            client.sendmail("ann@a.test", recipients or ["bob@sinkhole.test"], message, ["body=8bitmime"])

    await asyncio.to_thread(send)


async def test_the_mode_is_shown_and_changed_where_it_is_written(served, tmp_path):
    """PUT changes the file that the sinkhole follows, so that every other follower changes, too; SMTP obeys at once."""
    path = tmp_path / "mode"
    made, http = await served(FileModeSource(path, lambda _text: None))
    assert (await http.get("/mode")).json() == {
        "mode": "defer",
        "meaning": "rcpt: 421 4.3.2 Service temporarily unavailable",
    }
    await converse(made)
    assert made.capture.total_count == 0
    changed = await http.put("/mode", json={"mode": " ACCEPT"})
    assert changed.json() == {"mode": "accept", "meaning": "accepts everything"}
    assert path.read_text() == "accept\n"
    await converse(made)
    assert made.capture.total_count == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("PUT", "/mode", {"mode": "defr"}, 422, "invalid_field"),
        ("PUT", "/mode", {"mod": "accept"}, 400, "invalid_json"),
        ("PUT", "/mode", {"mode": "x" * MAX_BODY_BYTES}, 413, "too_large"),
        ("PUT", "/mode", None, 415, "unsupported_media_type"),
        ("POST", "/mode", {}, 405, "method_not_allowed"),
        ("GET", "/messages/m9", None, 404, "not_found"),
        ("GET", "/connections/c9", None, 404, "not_found"),
        ("GET", "/nothing", None, 404, "not_found"),
        ("GET", "/messages?limit=0", None, 400, "invalid_field"),
        ("GET", "/messages?limit=1001", None, 400, "invalid_field"),
        ("GET", "/messages?what=x", None, 400, "invalid_field"),
    ],
)
async def test_what_is_refused_is_a_problem_document(served, method, path, body, status, code):
    """Each refusal has its status, a stable type, and changes nothing."""
    made, http = await served()
    answer = await http.request(method, path, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["type"] == f"urn:mailkeep:problem:{code}"
    assert str(made.source.mode) == "accept"


async def test_the_inbox_holds_envelopes_and_messages(served):
    """The newest first, for one recipient where asked, each whole with its octets; emptied by DELETE."""
    made, http = await served()
    await converse(made, "bob@sinkhole.test", "eve@sinkhole.test")
    await converse(made, "zoe@sinkhole.test", message=b"\r\nno header\r\n")
    found = (await http.get("/messages")).json()
    assert [(each["id"], each["recipients"]) for each in found["messages"]] == [
        ("m2", ["zoe@sinkhole.test"]),
        ("m1", ["bob@sinkhole.test", "eve@sinkhole.test"]),
    ]
    assert (found["taken"], found["kept"], found["dropped"]) == (2, 2, 0)
    first = found["messages"][1]
    assert (first["subject"], first["message_id"], first["connection_id"]) == (
        "Gr u\xdfe",
        "<1@a.test>",
        "c1",
    )
    assert [
        m["id"] for m in (await http.get("/messages?recipient=eve@sinkhole.test")).json()["messages"]
    ] == ["m1"]
    assert len((await http.get("/messages?limit=1")).json()["messages"]) == 1
    assert (await http.get("/messages/m1")).json() == {"message": first, "text": MESSAGE.decode()}
    raw = await http.get("/messages/m1/raw")
    assert (raw.headers["content-type"], raw.content) == ("message/rfc822", MESSAGE)
    assert (await http.delete("/messages")).json() == {"forgotten": 2}
    assert (await http.get("/messages")).json() == {"messages": [], "taken": 2, "kept": 0, "dropped": 0}


async def test_a_full_inbox_says_what_it_dropped(served):
    """Beyond the bound the oldest message is gone and counted."""
    made, http = await served(capture=Capture(max_messages=1))
    for _ in range(3):
        await converse(made)
    found = (await http.get("/messages")).json()
    assert ([each["id"] for each in found["messages"]], found["dropped"]) == (["m3"], 2)
    assert (await http.get("/messages/m1")).status_code == 404


async def test_a_transcript_tells_the_dialog_without_the_login(served):
    """Everything said is there in its order, refused or not; logins, whole or out of order, are not, nor is the message."""
    made, http = await served(FixedModeSource(parse_mode("defer")), credentials=Credentials("ann", PASSWORD))
    secrets = ("AGFubgBhLWNhbmFyeS1zZWNyZXQ=", "YW5u", "YS1jYW5hcnktc2VjcmV0")

    def talk():
        with smtplib.SMTP("127.0.0.1", made.port, "c.test", timeout=PATIENCE_S) as client:
            client.ehlo()
            client.docmd("AUTH X", secrets[0])
            client.docmd(secrets[1])  # to a server that didn't ask
            client.docmd("AUTH", f"PLAIN {secrets[0]}")
            client.mail("ann@a.test")
            client.rcpt("bob@sinkhole.test")
            client.rcpt("accept+1@sinkhole.test")
            client.docmd("DATA")
            client.send(b"Subject: canary\r\n\r\nhi\r\n.\r\n")
            client.getreply()
        with smtplib.SMTP("127.0.0.1", made.port, "c.test", timeout=PATIENCE_S) as client:
            client.ehlo()
            client.docmd("AUTH", "LOGIN")
            client.docmd(secrets[1])
            client.docmd(secrets[2])

    await asyncio.to_thread(talk)
    listed = (await http.get("/connections")).json()
    assert [(each["id"], each["mode"]) for each in listed["connections"]] == [
        ("c2", "defer"),
        ("c1", "defer"),
    ]
    first, second = [(await http.get(f"/connections/c{number}")).json() for number in (1, 2)]
    said = [f"{line['by']}: {line['text']}" for line in first["lines"]]
    for line in (
        "server: 220 sinkhole.test ESMTP Mailkeep sinkhole",
        "client: AUTH PLAIN ***",
        "client: (4 octets that are no command)",
        "client: mail FROM:<ann@a.test>",
        "server: 421 4.3.2 Service temporarily unavailable",
        "client: (a message of 23 octets)",
        "server: 250 2.0.0 Ok",
        "server: 221 2.0.0 Bye",
        "note: connection closed",
    ):
        assert any(each.startswith(line) for each in said), line
    assert said.index("client: DATA") < said.index("client: (a message of 23 octets)")
    for secret in (*secrets, PASSWORD, "canary"):
        assert secret not in f"{first}{second}"
    assert all(each["ended_at"] for each in listed["connections"])
    assert (await http.get("/messages/m1")).json()["message"]["connection_id"] == "c1"


def test_transcripts_are_bounded():
    """The oldest connections make room by count and by characters; lines are cut, and beyond their bound only counted."""
    kept = Transcripts(max_connections=2, max_chars=3 * MAX_LINE_CHARS)
    first, second, third = (kept.begin("127.0.0.1", "accept", now_utc()) for _ in range(3))
    assert ([each.id for each in kept.connections], kept.dropped_count) == (["c2", "c3"], 1)
    kept.note(first, Line(0.0, Speaker.CLIENT, "gone"))
    assert (first.lines, kept.size_chars) == ([], 0)
    for _ in range(2):
        kept.note(second, Line(0.0, Speaker.CLIENT, "x" * 2 * MAX_LINE_CHARS))
    assert (len(second.lines[0].text), kept.size_chars) == (MAX_LINE_CHARS, 2 * MAX_LINE_CHARS)
    for _ in range(2):
        kept.note(third, Line(0.0, Speaker.CLIENT, "x" * MAX_LINE_CHARS))
    assert ([each.id for each in kept.connections], kept.size_chars) == (["c3"], 2 * MAX_LINE_CHARS)
    for _ in range(MAX_LINES):
        kept.note(third, Line(0.0, Speaker.CLIENT, ""))
    assert (len(third.lines), third.left_out) == (MAX_LINES, 2)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
    ],
)
async def test_the_token_guards_everything(served, headers, status):
    """With a token nothing is answered without it, whatever the path; 401 says how."""
    _made, http = await served(token=TOKEN)
    for path in ("/mode", "/messages", "/nothing"):
        answer = await http.get(path, headers=headers)
        assert answer.status_code == (404 if (status, path) == (200, "/nothing") else status)
        assert ("www-authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8025", 200),
        ("127.0.0.1", 200),
        ("[::1]:8025", 200),
        ("evil.example", 403),
        ("192.0.2.1", 403),
        ("", 403),
    ],
)
async def test_without_a_token_only_this_machine_is_meant(served, host, status):
    """A page of a browser that reaches loopback by a name of its own (DNS rebinding) reads no mail."""
    _made, http = await served()
    assert (await http.get("/messages", headers={"host": host})).status_code == status


# The commands.


@pytest.fixture
def running(tmp_path):
    """Run a sinkhole as a process with a token, and give its started event and what its clients need."""
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state"), "MAIL_ENVIRONMENT": "development"}
    options = {
        "port": "0",
        "http": "127.0.0.1:0",
        "mode": "accept",
        "http-token-file": token,
        "tls-ca-file": tmp_path / "ca.pem",
        "username": "ann",
        "password-file": password,
    }
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mailkeep",
            "sinkhole",
            *(f"--{name}={value}" for name, value in options.items()),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    started = json.loads(process.stdout.readline())
    yield started, ("--url", started["url"], "--token-file", str(token)), tmp_path / "ca.pem"
    process.kill()
    process.communicate()


def call(*arguments):
    """Run a command of the sinkhole and return what it printed."""
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def test_the_commands_ask_a_running_sinkhole(running):
    """`inbox`, `show`, `transcript` and `mode` show and change a sinkhole that runs elsewhere; nothing steers the terminal."""
    started, asked, authority = running
    context = ssl.create_default_context(cafile=str(authority))
    with smtplib.SMTP("localhost", started["port"], "c.test", timeout=PATIENCE_S) as client:
        client.starttls(context=context)
        client.login("ann", PASSWORD)
        client.sendmail("ann@a.test", "bob@sinkhole.test", MESSAGE, ["body=8bitmime"])
    titles, row, total = call("inbox", *asked).splitlines()
    assert titles.split() == ["ID", "RECEIVED", "SIZE", "FROM", "TO", "CONNECTION", "SUBJECT"]
    assert row.split()[0] == "m1"
    assert row.endswith("c1          Gr u\xdfe")
    assert total == "-- 1 shown, 1 in memory, 1 taken"
    assert json.loads(call("inbox", "--json", "--recipient", "eve@a.test", *asked))["messages"] == []
    shown = call("show", "m1", *asked)
    assert "connection  c1, with TLS and login" in shown
    assert "hi \\x1b[31m" in shown
    assert "\x1b" not in shown
    assert CliRunner().invoke(app, ["show", "m1", "--raw", *asked]).stdout_bytes == MESSAGE
    told = call("transcript", "m1", *asked)
    assert told == call("transcript", "c1", *asked)
    for words in ("-> mail FROM:<ann@a.test>", "<- 250 2.0.0 Ok", "-- TLS", "AUTH PLAIN ***"):
        assert words in told
    assert PASSWORD not in told
    assert "c1" in call("transcript", *asked)
    assert call("mode", "drop@dot", *asked).startswith("accept -> drop@dot")
    assert call("mode", *asked).startswith(
        "drop@dot  (dot: no reply, then close)  in the sinkhole at http://"
    )
    assert call("inbox", "--clear", *asked) == "1 messages forgotten\n"
    refused = CliRunner().invoke(app, ["inbox", "--url", started["url"]])
    assert (refused.exit_code, "answers 401" in refused.stderr) == (1, True)
    missing = CliRunner().invoke(app, ["show", "m9", *asked])
    assert (missing.exit_code, "no such message" in missing.stderr) == (1, True)
