"""The sinkhole on a real port, spoken to by aiosmtplib, swaks and raw sockets."""

import asyncio
import base64
import contextlib
import os
import random
import shutil
import socket
import ssl
import subprocess
from email.message import EmailMessage
from pathlib import Path

import aiosmtplib
import pytest
import trustme

from mailkeep.sinkhole.capture import Capture, read_capture_file
from mailkeep.sinkhole.certificates import Certificates
from mailkeep.sinkhole.mode_source import FixedModeSource
from mailkeep.sinkhole.report import Exchange
from mailkeep.sinkhole.script import parse_mode
from mailkeep.sinkhole.server import Sinkhole, SinkholeRefusedError
from mailkeep.sinkhole.session import Credentials, Limits

CREDENTIALS = Credentials("ann", "a-canary-secret")
BODY = b"Message-ID: <1@a.test>\r\nSubject: hi\r\n\r\n..dot\r\n"


def _swaks_can(feature):
    """Whether swaks is there and has the Perl modules for `feature`."""
    path = shutil.which("swaks")
    return bool(path) and f"=== {feature} supported" in subprocess.check_output(
        [path, "--support"], text=True
    )


# Who has cloned this may do without swaks, or have it without the Perl module for TLS, which Debian leaves out. CI may not: `.ci/run`
# installs both, and what is missing there fails.
IN_CI = "CI" in os.environ
SWAKS = pytest.mark.skipif(not IN_CI and not shutil.which("swaks"), reason="needs swaks")
SWAKS_TLS = pytest.mark.skipif(
    not IN_CI and not _swaks_can("TLS"), reason="needs swaks and Perl's Net::SSLeay"
)
REPLY_TIMEOUT_S = 60


class Client:
    """A raw connection that knows lines and nothing else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def cut(self) -> None:
        """End the connection at once."""
        self.writer.transport.abort()

    async def reply(self) -> str:
        """Return the next reply, its lines joined; empty when the connection is closed."""
        lines = []
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            while line := (await self.reader.readline()).decode().rstrip("\r\n"):
                lines.append(line)
                if line[3:4] != "-":
                    break
        return "\n".join(lines)

    async def say(self, *lines: bytes) -> list[str]:
        """Send the lines in one write and return as many replies."""
        self.writer.write(b"".join(line + b"\r\n" for line in lines))
        return [await self.reply() for _ in lines]

    async def codes(self, *lines: bytes) -> list[str]:
        """Like `say`, but return only the codes."""
        return [reply[:3] for reply in await self.say(*lines)]

    async def send(self, octets: bytes) -> str:
        """Send octets as they are and return the next reply."""
        self.writer.write(octets)
        return await self.reply()

    async def offer(self, recipient: bytes = b"bob@sinkhole.test") -> list[str]:
        """Go as far as DATA."""
        return await self.codes(b"MAIL FROM:<ann@a.test>", b"RCPT TO:<" + recipient + b">", b"DATA")


@pytest.fixture
async def house():
    """Give a starter of sinkholes and a maker of connections; everything is closed at the end."""
    async with contextlib.AsyncExitStack() as stack:

        class House:
            async def sinkhole(self, mode="accept", capture=None, **options):
                sinkhole = Sinkhole(FixedModeSource(parse_mode(mode)), capture, **options)
                await sinkhole.start()
                stack.push_async_callback(sinkhole.stop)
                return sinkhole

            async def connect(self, sinkhole, *, greet=True, **options):
                reader, writer = await asyncio.open_connection("127.0.0.1", sinkhole.port, **options)
                client = Client(reader, writer)
                stack.callback(client.cut)
                if greet:
                    assert (await client.reply()).startswith("220 sinkhole.test ")
                    assert (await client.codes(b"EHLO client.test")) == ["250"]
                return client

        yield House()


@pytest.fixture(scope="module")
def authority():
    """Make a private certificate authority."""
    return trustme.CA()


@pytest.fixture
def server_tls(authority):
    """Make the server's certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return Certificates(context)


@pytest.fixture
def client_tls(authority):
    """Make a verifying client's TLS context."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def mail(recipient="bob@sinkhole.test"):
    """Write a message with the standard library."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "ann@a.test", recipient, "hi"
    message["Message-ID"] = "<1@a.test>"
    message.set_content("one\n.two\n..three\n")
    return message


async def swaks(sinkhole, *arguments):
    """Run swaks and return its exit code and transcript."""
    process = await asyncio.create_subprocess_exec(
        "swaks", "--server", "127.0.0.1", "--port", str(sinkhole.port), "--helo", "client.test",
        "--from", "ann@a.test", "--to", "bob@sinkhole.test", "--timeout", "10", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    transcript, _ = await process.communicate()
    return process.returncode, transcript.decode()


# Modes.


async def test_accept_takes_and_keeps_a_message(house):
    """A message that aiosmtplib hands over is kept as it was, with its envelope."""
    sinkhole = await house.sinkhole("accept")
    errors, reply = await aiosmtplib.send(mail(), hostname="127.0.0.1", port=sinkhole.port, start_tls=False)
    (kept,) = sinkhole.capture.messages
    assert (errors, reply) == ({}, "2.0.0 Ok")
    assert (kept.sender, kept.recipients) == ("ann@a.test", ("bob@sinkhole.test",))
    assert (kept.message_id, kept.is_answered, kept.client) == ("<1@a.test>", True, "127.0.0.1")
    assert kept.body.endswith(b"\r\n\r\none\r\n.two\r\n..three\r\n")
    assert sinkhole.capture.counts_by_recipient == {"bob@sinkhole.test": 1}


@pytest.mark.parametrize(
    ("mode", "error", "code", "text"),
    [
        ("defer", aiosmtplib.SMTPRecipientsRefused, 421, "4.3.2 Service temporarily unavailable"),
        ("bounce", aiosmtplib.SMTPRecipientsRefused, 550, "5.1.1 No such user here"),
        ("tempfail@mail", aiosmtplib.SMTPSenderRefused, 451, "4.3.0 Local error in processing"),
        ("permfail@data", aiosmtplib.SMTPDataError, 554, "5.5.0 Transaction failed"),
        ("tempfail@dot", aiosmtplib.SMTPDataError, 451, "4.3.0 Local error in processing"),
        ("421@dot", aiosmtplib.SMTPDataError, 421, "4.3.2 Service shutting down"),
        ("drop@dot", aiosmtplib.SMTPServerDisconnected, None, None),
    ],
)
async def test_refusals_as_aiosmtplib_sees_them(house, mode, error, code, text):
    """What a mode refuses reaches an ordinary client as that refusal, and nothing is kept."""
    sinkhole = await house.sinkhole(mode)
    with pytest.raises(error) as caught:
        await aiosmtplib.send(mail(), hostname="127.0.0.1", port=sinkhole.port, start_tls=False)
    fault = caught.value.recipients[0] if error is aiosmtplib.SMTPRecipientsRefused else caught.value
    assert (getattr(fault, "code", None), getattr(fault, "message", None) if code else None) == (code, text)
    assert sinkhole.capture.total_count == 0


async def test_defer_keeps_the_connection(house):
    """The 421 of `defer` leaves the connection open, and the same client may try again."""
    sinkhole = await house.sinkhole("defer")
    client = await house.connect(sinkhole)
    assert await client.offer() == ["250", "421", "554"]
    assert await client.codes(b"RSET", b"NOOP", b"QUIT") == ["250", "250", "221"]
    assert await client.reply() == ""


async def test_the_mode_is_read_again_on_an_open_connection(house):
    """A mode that changes while a connection is open is in force at its next RCPT."""
    sinkhole = await house.sinkhole("defer")
    client = await house.connect(sinkhole)
    assert await client.codes(b"MAIL FROM:<ann@a.test>", b"RCPT TO:<bob@a.test>") == ["250", "421"]
    sinkhole.source.mode = parse_mode("accept")
    assert await client.codes(b"RCPT TO:<bob@a.test>", b"DATA") == ["250", "354"]
    assert await client.send(BODY + b".\r\n") == "250 2.0.0 Ok"
    sinkhole.source.mode = parse_mode("bounce")
    assert await client.codes(b"MAIL FROM:<ann@a.test>", b"RCPT TO:<bob@a.test>") == ["250", "550"]


async def test_greylist_lets_the_second_try_through(house):
    """The first try of each (client, sender, recipient) is put off, the next is taken."""
    client = await house.connect(await house.sinkhole("greylist"))
    first, again, other = b"RCPT TO:<bob@a.test>", b"RCPT TO:<bob@a.test>", b"RCPT TO:<eve@a.test>"
    replies = await client.codes(b"MAIL FROM:<ann@a.test>", first, again, other, b"RSET")
    assert replies == ["250", "421", "250", "421", "250"]
    assert await client.codes(b"MAIL FROM:<zoe@a.test>", first) == ["250", "421"]


async def test_recipient_scripts_count_across_connections(house):
    """`defer-2x+label` defers a recipient twice, whoever asks, and accepts then, though the mode is bounce."""
    sinkhole = await house.sinkhole("bounce")
    codes = []
    for sender in (b"ann", b"zoe", b"ann"):
        client = await house.connect(sinkhole)
        codes += (
            await client.codes(
                b"MAIL FROM:<" + sender + b"@a.test>",
                b"RCPT TO:<defer-2x+1@sinkhole.test>",
                b"RCPT TO:<accept+2@sinkhole.test>",
                b"RCPT TO:<bob@sinkhole.test>",
            )
        )[1:]
    assert codes == ["421", "250", "550", "421", "250", "550", "250", "250", "550"]


async def test_accept_then_drop_keeps_the_message_and_says_nothing(house):
    """The message is kept as unanswered, the connection ends without a reply to the dot."""
    sinkhole = await house.sinkhole("accept-then-drop")
    client = await house.connect(sinkhole)
    assert await client.offer() == ["250", "250", "354"]
    assert await client.send(BODY + b".\r\n") == ""
    assert [kept.is_answered for kept in sinkhole.capture.messages] == [False]


async def test_accept_then_421_answers_and_leaves(house):
    """After the 250 comes a 421 that nobody asked for, then the end."""
    sinkhole = await house.sinkhole("accept-then-421")
    client = await house.connect(sinkhole)
    await client.offer()
    assert await client.send(BODY + b".\r\n") == "250 2.0.0 Ok"
    assert [await client.reply(), await client.reply()] == ["421 4.3.2 Service shutting down", ""]
    assert [kept.is_answered for kept in sinkhole.capture.messages] == [True]


async def test_stall_says_nothing_and_holds_the_connection(house):
    """`stall@mail` swallows what comes; the connection stays open until the client leaves."""
    sinkhole = await house.sinkhole("stall@mail")
    client = await house.connect(sinkhole)
    client.writer.write(b"MAIL FROM:<ann@a.test>\r\nNOOP\r\n")
    await asyncio.sleep(0.05)
    client.writer.write(b"NOOP\r\n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.reader.read(1), 0.2)
    (session,) = sinkhole._shared.sessions
    assert session._buffer == b""
    client.writer.close()
    await until(lambda: sinkhole.connection_count == 0)


async def test_stall_at_body_stops_reading(house):
    """`stall@body` reads no more, so that the client's window fills."""
    client = await house.connect(await house.sinkhole("stall@body"))
    assert await client.offer() == ["250", "250", "354"]
    client.writer.write(b"x" * 64 * 1024 * 1024)  # more than the kernel buffers on both sides
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.writer.drain(), 0.5)


async def test_421_at_body_answers_while_the_body_flows(house):
    """A reply may come before the message is whole."""
    client = await house.connect(await house.sinkhole("421@body"))
    await client.offer()
    assert await client.send(b"Subject: hi\r\n") == "421 4.3.2 Service shutting down"


async def test_slow_answers_late_and_in_order(house):
    """`slow@rcpt` delays that reply; what was pipelined behind it is answered after it."""
    sinkhole = await house.sinkhole("slow@rcpt")
    client = await house.connect(sinkhole)
    assert await client.offer() == ["250", "250", "354"]
    assert await client.send(BODY + b".\r\n") == "250 2.0.0 Ok"


async def test_greeting_faults(house):
    """`tempfail` turns clients away at the greeting; `drop@greeting` without a word."""
    client = await house.connect(await house.sinkhole("tempfail"), greet=False)
    assert [await client.reply(), await client.reply()] == ["421 4.3.2 Service not available", ""]
    client = await house.connect(await house.sinkhole("drop@greeting"), greet=False)
    assert await client.reply() == ""


async def test_a_refused_ehlo_leaves_helo(house):
    """`permfail@ehlo` is a server from before ESMTP: HELO works and mail can be sent."""
    client = await house.connect(await house.sinkhole("permfail@ehlo"), greet=False)
    await client.reply()
    assert await client.say(b"EHLO c.test", b"HELO c.test") == [
        "502 5.5.1 Command not implemented",
        "250 sinkhole.test",
    ]
    assert await client.offer() == ["250", "250", "354"]


async def test_observer_sees_refusals_and_messages(house):
    """One exchange is reported for each refused recipient and each message, with headers only in accept-log."""
    seen: list[Exchange] = []
    sinkhole = await house.sinkhole("defer", observe=seen.append)
    client = await house.connect(sinkhole)
    await client.offer()
    sinkhole.source.mode = parse_mode("accept-log")
    await client.codes(b"RCPT TO:<bob@sinkhole.test>", b"RCPT TO:<eve@sinkhole.test>", b"DATA")
    await client.send(BODY + b".\r\n")
    assert [(e.mode, e.phase, e.reply, e.headers) for e in seen] == [
        ("defer", "rcpt", "421 4.3.2 Service temporarily unavailable", None),
        ("accept-log", "dot", "250 2.0.0 Ok", "Message-ID: <1@a.test>\r\nSubject: hi"),
    ]
    assert seen[0].recipients == ("bob@sinkhole.test",)
    assert seen[1].recipients == ("bob@sinkhole.test", "eve@sinkhole.test")


# The protocol.


@SWAKS
@pytest.mark.parametrize(
    ("mode", "exit_code", "line"),
    [
        ("accept", 0, "<-  250 2.0.0 Ok"),
        ("defer", 24, "<** 421 4.3.2 Service temporarily unavailable"),
        ("bounce", 24, "<** 550 5.1.1 No such user here"),
    ],
)
async def test_swaks(house, mode, exit_code, line):
    """A client that is not ours sees each mode as it is meant."""
    sinkhole = await house.sinkhole(mode)
    code, transcript = await swaks(sinkhole)
    assert (code, line in transcript) == (exit_code, True), transcript


@SWAKS_TLS
async def test_swaks_over_starttls_with_auth(house, server_tls):
    """Swaks logs in over STARTTLS; the message says so."""
    sinkhole = await house.sinkhole(tls=server_tls, credentials=CREDENTIALS)
    for mechanism in ("PLAIN", "LOGIN"):
        login = ("--auth", mechanism, "--auth-user", "ann", "--auth-password", "a-canary-secret")
        code, transcript = await swaks(sinkhole, "--tls", *login)
        assert code == 0, transcript
    assert [(m.is_tls, m.is_authenticated) for m in sinkhole.capture.messages] == [(True, True)] * 2


async def test_a_thousand_pipelined_messages_arrive_byte_identical(house):
    """Whatever the cuts between reads, 1,000 pipelined messages arrive as they were sent, in order."""
    chance = random.Random(1)
    alphabet = (b".", b"..", b"\r\n", b"\r\n.", b"\r\n..", b"text ", "ü".encode())
    bodies = [b"".join(chance.choices(alphabet, k=chance.randrange(60))) + b"\r\n" for _ in range(1000)]
    envelope = b"MAIL FROM:<ann@a.test> BODY=8BITMIME\r\nRCPT TO:<bob@a.test>\r\nDATA\r\n"
    octets = b"".join(
        envelope + (b"\r\n" + body).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n" for body in bodies
    )
    sinkhole = await house.sinkhole()
    client = await house.connect(sinkhole)

    async def send():
        sent = 0
        while sent < len(octets):
            end = sent + chance.randrange(1, 3000)
            client.writer.write(octets[sent:end])
            await client.writer.drain()
            await asyncio.sleep(0)  # let the sinkhole read what there is
            sent = end

    sending = asyncio.create_task(send())
    replies = [(await client.reply())[:3] for _ in range(4000)]
    await sending
    assert replies == ["250", "250", "354", "250"] * 1000
    assert [kept.body for kept in sinkhole.capture.messages] == bodies
    assert sinkhole.capture.anomaly_counts.total() == 0


async def test_every_octet_in_a_write_of_its_own(house):
    """A client that sends octet by octet is understood."""
    sinkhole = await house.sinkhole()
    client = await house.connect(sinkhole)
    client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for octet in b"MAIL FROM:<ann@a.test>\r\nRCPT TO:<bob@a.test>\r\nDATA\r\n..\r\n.\r\n":
        client.writer.write(bytes([octet]))
        await asyncio.sleep(0)
    assert [(await client.reply())[:3] for _ in range(4)] == ["250", "250", "354", "250"]
    assert [kept.body for kept in sinkhole.capture.messages] == [b".\r\n"]


async def test_an_empty_message(house):
    """A dot right after the 354 ends a message of no octets."""
    sinkhole = await house.sinkhole()
    client = await house.connect(sinkhole)
    await client.offer()
    assert await client.send(b".\r\n") == "250 2.0.0 Ok"
    assert [kept.body for kept in sinkhole.capture.messages] == [b""]


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        ((b"MAIL FROM:<a@b.test>", b"MAIL FROM:<a@b.test>"), ["250", "503"]),
        ((b"RCPT TO:<a@b.test>",), ["503"]),
        ((b"DATA",), ["503"]),
        ((b"MAIL FROM:<a@b.test>", b"DATA"), ["250", "554"]),
        ((b"MAIL FROM: <a@b.test>", b"MAIL FROM:a@b.test"), ["501", "501"]),
        ((b"MAIL FROM:<a@b.test> X=1", b"MAIL FROM:<a@b.test> BODY=9BIT"), ["555", "555"]),
        ((b"MAIL FROM:<a@b.test> SIZE=99999999999", b"MAIL FROM:<a@b.test> SIZE=x"), ["552", "555"]),
        (("MAIL FROM:<ü@b.test>".encode(), "MAIL FROM:<ü@b.test> SMTPUTF8".encode()), ["553", "250"]),
        ((b"MAIL FROM:<>", b"RCPT TO:<>", "RCPT TO:<ü@b.test>".encode()), ["250", "501", "553"]),
        ((b"MAIL FROM:<>", b"RCPT TO:<a@b.test> NOTIFY=NEVER"), ["250", "555"]),
        ((b"MAIL FROM:<>", b"RCPT TO:<a@b.test>", b"DATA now"), ["250", "250", "501"]),
        ((b"XCLIENT a=b", b"BDAT 3", b"NO\nOP", b"NOOP\0", b""), ["500"] * 5),
        ((b"EHLO", b"HELO", b"STARTTLS", b"AUTH PLAIN"), ["501", "501", "502", "502"]),
        ((b"VRFY bob", b"HELP", b"noop"), ["252", "214", "250"]),
        ((b"MAIL FROM:<>", b"EHLO again.test", b"RCPT TO:<a@b.test>"), ["250", "250", "503"]),
    ],
)
async def test_commands(house, lines, codes):
    """Syntax and order are judged as RFC 5321 has them."""
    client = await house.connect(await house.sinkhole())
    assert await client.codes(*lines) == codes


async def test_nothing_goes_before_ehlo(house):
    """MAIL needs a greeting."""
    client = await house.connect(await house.sinkhole(), greet=False)
    await client.reply()
    assert await client.codes(b"MAIL FROM:<a@b.test>") == ["503"]


async def test_the_offers(house, server_tls):
    """EHLO lists what is there: AUTH only where it may be used, STARTTLS only until it was."""
    plain = await house.connect(await house.sinkhole(credentials=CREDENTIALS), greet=False)
    await plain.reply()
    assert (await plain.say(b"EHLO c.test"))[0].split("\n") == [
        "250-sinkhole.test", "250-SIZE 26214400", "250-PIPELINING", "250-8BITMIME", "250-SMTPUTF8",
        "250-ENHANCEDSTATUSCODES", "250-AUTH PLAIN LOGIN", "250 HELP",
    ]  # fmt: skip
    both = await house.connect(await house.sinkhole(credentials=CREDENTIALS, tls=server_tls), greet=False)
    await both.reply()
    offers = (await both.say(b"EHLO c.test"))[0]
    assert "250-STARTTLS" in offers
    assert "AUTH" not in offers
    assert await both.codes(b"AUTH PLAIN AGEAYg==") == ["538"]


async def test_what_is_not_offered_is_refused(house):
    """Without 8BITMIME and SMTPUTF8 on offer their parameters are refused."""
    client = await house.connect(await house.sinkhole(limits=Limits(extensions=("PIPELINING",))))
    assert await client.codes(b"MAIL FROM:<> BODY=8BITMIME", b"MAIL FROM:<> SMTPUTF8") == ["555", "555"]


@pytest.mark.parametrize(
    ("message", "anomaly"),
    [
        (b"a\n.\nMAIL FROM:<x@y.test>\r\n", "bare_lf"),
        (b"a\r\n.\nb\r\n", "bare_lf"),
        (b"a\n.\r\nb\r\n", "bare_lf"),
        (b"a\r.\rb\r\n", "bare_cr"),
        (b"a\r\r\n", "bare_cr"),
        (b"a\0b\r\n", "nul"),
    ],
)
async def test_smuggling_is_refused_and_recorded(house, message, anomaly):
    """No end of message but CRLF.CRLF is one; a message with bare CR, LF or NUL is refused unless told otherwise."""
    strict, lenient = await house.sinkhole(), await house.sinkhole(limits=Limits(is_strict=False))
    client = await house.connect(strict)
    await client.offer()
    assert await client.send(message + b".\r\n") == "554 5.6.0 Bare CR, bare LF or NUL in the message"
    assert await client.codes(b"NOOP") == ["250"]
    assert (strict.capture.total_count, strict.capture.anomaly_counts[anomaly]) == (0, 1)
    client = await house.connect(lenient)
    await client.offer()
    assert await client.send(message + b".\r\n") == "250 2.0.0 Ok"
    (kept,) = lenient.capture.messages
    assert (kept.body, anomaly in kept.anomalies) == (message.replace(b"\r\n.", b"\r\n"), True)


async def test_other_anomalies_are_recorded_only(house):
    """Octets above 127 without 8BITMIME and lines over 998 octets are noted, and the message is taken."""
    sinkhole = await house.sinkhole()
    client = await house.connect(sinkhole)
    await client.offer()
    assert await client.send(b"\xe4" * 1000 + b"\r\n.\r\n") == "250 2.0.0 Ok"
    assert sinkhole.capture.messages[0].anomalies == ("long_line", "undeclared_8bit")


# Bounds.


async def test_line_bound(house):
    """A command line over the bound ends the connection, with or without its CRLF."""
    sinkhole = await house.sinkhole(limits=Limits(line_octets=64))
    for line in (b"NOOP " + b"x" * 60, b"NOOP " + b"x" * 60 + b"\r\nNOOP\r\n"):
        client = await house.connect(sinkhole)
        assert await client.send(line) == "500 5.5.2 Line too long"
        assert await client.reply() == ""
    client = await house.connect(sinkhole)
    assert await client.send(b"NOOP " + b"x" * 57 + b"\r\n") == "250 2.0.0 Ok"


async def test_recipient_bound(house):
    """Recipients over the bound are put off; the others stay."""
    client = await house.connect(await house.sinkhole(limits=Limits(recipients=2)))
    recipient = b"RCPT TO:<bob@a.test>"
    assert await client.codes(b"MAIL FROM:<>", recipient, recipient, recipient) == [
        "250",
        "250",
        "250",
        "452",
    ]
    assert await client.codes(b"DATA") == ["354"]


@pytest.mark.parametrize("octets", [1001, 1999, 2500, 200_000])
async def test_message_bound(house, octets):
    """A message over the bound is refused at its end, is not kept in memory, and the connection lives on."""
    sinkhole = await house.sinkhole(limits=Limits(message_bytes=1000))
    client = await house.connect(sinkhole)
    await client.offer()
    assert await client.send(b"x" * (octets - 2) + b"\r\n.\r\n") == "552 5.3.4 Message too big"
    assert await client.codes(b"MAIL FROM:<> SIZE=1001", b"MAIL FROM:<> SIZE=1000") == ["552", "250"]
    assert await client.codes(b"RCPT TO:<a@b.test>", b"DATA") == ["250", "354"]
    assert await client.send(b"x" * 998 + b"\r\n.\r\n") == "250 2.0.0 Ok"
    assert sinkhole.capture.total_count == 1


async def test_a_message_over_the_bound_is_not_gathered(house):
    """Of a message that comes in pieces the sinkhole holds no more than its bound asks for, and it finds the end."""
    sinkhole = await house.sinkhole(limits=Limits(message_bytes=1000))
    client = await house.connect(sinkhole)
    await client.offer()
    (session,) = sinkhole._shared.sessions
    for piece in (b"x" * 2001, b"x" * 500, b"x" * 2001 + b"\r\n.", b"\r"):
        client.writer.write(piece)
        await asyncio.sleep(0.05)
        assert len(session._buffer) <= 2000
    assert await client.send(b"\n") == "552 5.3.4 Message too big"


async def test_connection_bound(house):
    """A connection over the bound is turned away with 421; a place that is free again is given."""
    sinkhole = await house.sinkhole(limits=Limits(connections=1))
    first = await house.connect(sinkhole)
    second = await house.connect(sinkhole, greet=False)
    assert [await second.reply(), await second.reply()] == ["421 4.7.0 Too many connections", ""]
    await first.codes(b"QUIT")
    await until(lambda: sinkhole.connection_count == 0)
    await house.connect(sinkhole)


async def test_idle_bound(house):
    """A silent connection is ended with 421."""
    client = await house.connect(await house.sinkhole(limits=Limits(idle_timeout_s=0.2)))
    assert [await client.reply(), await client.reply()] == ["421 4.4.2 Idle for too long", ""]


async def test_replies_nobody_reads_do_not_pile_up(house):
    """A client that asks and never reads is itself read no further."""
    sinkhole = await house.sinkhole()
    client = await house.connect(sinkhole)
    client.reader._limit = 1  # the stream stops reading its socket
    client.writer.write(b"EHLO x\r\n" * 2_000_000)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.writer.drain(), 1)
    (session,) = sinkhole._shared.sessions
    assert session._transport.get_write_buffer_size() < 16 * 1024 * 1024
    assert len(session._buffer) < 1024 * 1024


# TLS and AUTH.


async def test_implicit_tls(house, server_tls, client_tls):
    """With implicit TLS the greeting comes inside TLS, and STARTTLS is not offered."""
    sinkhole = await house.sinkhole(tls=server_tls, implicit_tls=True)
    await aiosmtplib.send(
        mail(), hostname="127.0.0.1", port=sinkhole.port, use_tls=True, tls_context=client_tls
    )
    assert sinkhole.capture.messages[0].is_tls
    client = await house.connect(sinkhole, ssl=client_tls)
    assert await client.codes(b"STARTTLS") == ["502"]


async def test_starttls_and_auth_with_aiosmtplib(house, server_tls, client_tls):
    """STARTTLS, then AUTH, then mail; without the login MAIL is refused."""
    sinkhole = await house.sinkhole(tls=server_tls, credentials=CREDENTIALS)
    server = {"hostname": "127.0.0.1", "port": sinkhole.port, "start_tls": True, "tls_context": client_tls}
    with pytest.raises(aiosmtplib.SMTPSenderRefused) as caught:
        await aiosmtplib.send(mail(), **server)
    assert caught.value.code == 530
    with pytest.raises(aiosmtplib.SMTPAuthenticationError) as wrong:
        await aiosmtplib.send(mail(), **server, username="ann", password="wrong")
    assert wrong.value.code == 535
    await aiosmtplib.send(mail(), **server, username="ann", password="a-canary-secret")
    assert [(m.is_tls, m.is_authenticated) for m in sinkhole.capture.messages] == [(True, True)]


async def test_what_follows_starttls_in_clear_is_forgotten(house, server_tls, client_tls):
    """Commands pipelined behind STARTTLS are not taken for the client's, nor is its EHLO (CVE-2011-0411)."""
    client = await house.connect(await house.sinkhole(tls=server_tls))
    assert await client.send(b"STARTTLS\r\nNOOP\r\n") == "220 2.0.0 Ready to start TLS"
    await client.writer.start_tls(client_tls, server_hostname="localhost")
    assert await client.codes(b"MAIL FROM:<>", b"EHLO c.test", b"STARTTLS") == ["503", "250", "503"]


async def test_a_failed_handshake_ends_the_connection(house, server_tls):
    """A client that speaks no TLS after STARTTLS leaves nothing behind."""
    sinkhole = await house.sinkhole(tls=server_tls)
    client = await house.connect(sinkhole)
    assert await client.codes(b"STARTTLS") == ["220"]
    client.writer.write(b"EHLO c.test\r\n")
    await until(lambda: sinkhole.connection_count == 0)


async def test_stop_in_a_handshake(house, server_tls):
    """A connection that is cut while TLS begins is forgotten, too."""
    sinkhole = await house.sinkhole(tls=server_tls)
    client = await house.connect(sinkhole)
    assert await client.codes(b"STARTTLS") == ["220"]
    await sinkhole.stop()
    assert sinkhole.connection_count == 0


async def test_starttls_fault(house, server_tls):
    """`tempfail@starttls` answers 454 and goes on in clear."""
    client = await house.connect(await house.sinkhole("tempfail@starttls", tls=server_tls))
    assert await client.codes(b"STARTTLS", b"NOOP") == ["454", "250"]


def b64(text: str) -> bytes:
    """Return the base64 of `text`."""
    return base64.b64encode(text.encode())


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        ((b"AUTH PLAIN " + b64("\0ann\0a-canary-secret"), b"AUTH PLAIN"), ["235", "503"]),
        ((b"AUTH PLAIN", b64("\0ann\0a-canary-secret"), b"MAIL FROM:<>"), ["334", "235", "250"]),
        ((b"AUTH LOGIN", b64("ann"), b64("a-canary-secret")), ["334", "334", "235"]),
        ((b"AUTH LOGIN " + b64("ann"), b64("a-canary-secret")), ["334", "235"]),
        ((b"AUTH LOGIN", b64("ann"), b64("no"), b"NOOP"), ["334", "334", "535", "250"]),
        ((b"AUTH PLAIN " + b64("\0eve\0a-canary-secret"),), ["535"]),
        ((b"AUTH PLAIN " + b64("ann"), b"AUTH PLAIN", b"*", b"NOOP"), ["501", "334", "501", "250"]),
        ((b"AUTH LOGIN", b"*", b"AUTH LOGIN", b64("ann"), b"*"), ["334", "501", "334", "334", "501"]),
        ((b"AUTH CRAM-MD5", b"AUTH"), ["504", "504"]),
        ((b"MAIL FROM:<>",), ["530"]),
    ],
)
async def test_auth(house, lines, codes):
    """PLAIN and LOGIN are spoken with and without an initial response; all else is refused."""
    client = await house.connect(await house.sinkhole(credentials=CREDENTIALS))
    assert await client.codes(*lines) == codes


async def test_auth_fault(house):
    """`permfail@auth` refuses the right password, too."""
    client = await house.connect(await house.sinkhole("permfail@auth", credentials=CREDENTIALS))
    assert await client.codes(b"AUTH PLAIN " + b64("\0ann\0a-canary-secret")) == ["535"]


def test_credentials_never_show():
    """Neither repr nor str of the credentials holds the password."""
    assert "canary" not in f"{CREDENTIALS!r}{CREDENTIALS}"


# The capture file.


async def test_the_line_is_there_when_the_250_is(house, tmp_path):
    """Whoever reads the 250 finds the line, with the hash of the message and no content."""
    path = tmp_path / "capture.jsonl"
    sinkhole = await house.sinkhole(capture=Capture(path))
    client = await house.connect(sinkhole)
    for count in range(1, 4):
        await client.offer()
        await client.send(BODY + b".\r\n")
        lines = list(read_capture_file(path))
        assert [line.message_id for line in lines] == ["<1@a.test>"] * count
    assert b"Subject" not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
async def test_no_250_without_its_line(house):
    """The 250 waits for the line: when the file can't be written the answer is 452, and nothing is kept."""
    notices: list[str] = []
    sinkhole = await house.sinkhole(capture=Capture(Path("/dev/full")), notice=notices.append)
    client = await house.connect(sinkhole)
    await client.offer()
    assert await client.send(BODY + b".\r\n") == "452 4.3.1 The capture file can't be written"
    assert sinkhole.capture.total_count == 0
    assert notices == ["the capture file can't be written (No space left on device)"]


async def test_a_lost_250_shows_in_the_file(house, tmp_path):
    """In accept-then-drop the line says that no 250 was about to leave; a line half written is not read."""
    path = tmp_path / "capture.jsonl"
    client = await house.connect(await house.sinkhole("accept-then-drop", Capture(path)))
    await client.offer()
    await client.send(BODY + b".\r\n")
    with path.open("a") as file:
        file.write('{"received_at":')
    (line,) = read_capture_file(path)
    assert (line.is_answered, line.size_bytes) == (False, len(BODY) - 1)  # less the stuffed dot


# Start and stop.


@pytest.mark.parametrize(
    ("options", "host", "reason"),
    [
        ({"environment": "production"}, "127.0.0.1", "MAIL_ENVIRONMENT=production"),
        ({"environment": " Production", "allow_remote": True}, "127.0.0.1", "MAIL_ENVIRONMENT=production"),
        ({}, "0.0.0.0", "not a loopback address"),
        ({}, "::", "not a loopback address"),
        ({}, "mail.example.test", "not a loopback address"),
    ],
)
async def test_refuses_to_start(options, host, reason):
    """It starts neither in production nor, unless told to, beyond this host."""
    with pytest.raises(SinkholeRefusedError, match=reason):
        await Sinkhole(**options).start(host)


async def test_stop_frees_everything(house):
    """Stop cuts open connections, stalled ones too, and frees the port; the capture stays readable."""
    sinkhole = await house.sinkhole("stall@rcpt")
    client = await house.connect(sinkhole)
    assert await client.codes(b"MAIL FROM:<>") == ["250"]
    client.writer.write(b"RCPT TO:<a@b.test>\r\n")
    port = sinkhole.port
    await sinkhole.stop()
    with contextlib.suppress(ConnectionResetError):
        assert await client.reply() == ""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    assert sinkhole.capture.messages == ()
    await sinkhole.stop()


async def until(condition):
    """Wait until `condition` holds."""
    async with asyncio.timeout(REPLY_TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.01)
