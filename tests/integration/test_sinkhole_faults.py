"""Every mode and fault of the sinkhole, met by clients that are not ours (smtplib, aiosmtplib), and through the queue."""

import asyncio
import contextlib
import smtplib
import ssl
from collections import Counter
from pathlib import Path

import aiosmtplib
import pytest
from http_kit import DELIVERIES

from mailkeep.core.outcome import Phase
from mailkeep.sinkhole import script
from mailkeep.sinkhole.certificates import Certificates
from mailkeep.sinkhole.mode_source import FixedModeSource
from mailkeep.sinkhole.script import HEALTHY, ModeName, parse_mode
from mailkeep.sinkhole.server import Sinkhole
from mailkeep.sinkhole.session import Credentials, Limits

LOGIN = Credentials("ann", "a-canary-secret")
BODY = "Subject: hi\r\n\r\nhi\r\n"
PATIENCE_S = 60
STALL_S = 1.0  # how long a client waits for what never comes
GONE = (smtplib.SMTPServerDisconnected, ConnectionError, ssl.SSLError)
FINE = "fine"


@pytest.fixture
async def sinkhole():
    """Give a starter of sinkholes that offer everything; they are stopped at the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(mode, **options):
            made = Sinkhole(
                FixedModeSource(parse_mode(mode)),
                **{"tls": Certificates(), "credentials": LOGIN} | options,
            )
            await made.start()
            stack.push_async_callback(made.stop)
            return made

        yield start


def trusting(made):
    """Return a verifying client's TLS context that trusts the sinkhole's authority and nobody else."""
    context = ssl.create_default_context()
    context.load_verify_locations(cadata=made._shared.tls.authority.pem.decode())
    return context


class Walk:
    """The standard library's client, going through every phase in turn; `met` is where it went wrong, and how."""

    def __init__(self, port, tls, timeout_s=PATIENCE_S):
        self.port, self.tls, self.timeout_s = port, tls, timeout_s
        self.phase = Phase.GREETING

    def met(self):
        """Return the phase that went wrong with its code, `gone` or `silent`; or `fine`."""
        try:
            with contextlib.closing(smtplib.SMTP(timeout=self.timeout_s)) as client:
                for phase, step in self.steps(client):
                    self.phase = phase
                    code, wanted = step()
                    if code != wanted:
                        return phase, code
        except TimeoutError:
            return self.phase, "silent"
        except GONE as fault:  # smtplib calls a timeout a connection that was closed
            return self.phase, "silent" if "timed out" in str(fault) else "gone"
        return FINE

    def steps(self, client):
        """Yield each phase with what does it: it answers the code that came and the one that was wanted."""
        yield Phase.GREETING, lambda: (client.connect("127.0.0.1", self.port)[0], 220)
        yield Phase.EHLO, lambda: (client.ehlo("c.test")[0], 250)
        yield Phase.STARTTLS, lambda: (client.docmd("STARTTLS")[0], 220)
        yield Phase.TLS, lambda: (self.shake_hands(client), 250)
        yield Phase.AUTH, lambda: (client.docmd("AUTH PLAIN", "AGFubgBhLWNhbmFyeS1zZWNyZXQ=")[0], 235)
        yield Phase.MAIL, lambda: (client.mail("ann@a.test")[0], 250)
        yield Phase.RCPT, lambda: (client.rcpt("bob@a.test")[0], 250)
        yield Phase.DATA, lambda: (client.docmd("DATA")[0], 354)
        yield Phase.DOT, lambda: (self.hand_over(client), 250)
        yield Phase.QUIT, lambda: (client.quit()[0], 221)

    def shake_hands(self, client):
        client.sock = self.tls.wrap_socket(client.sock, server_hostname="localhost")
        client.file = None
        return client.ehlo("c.test")[0]

    def hand_over(self, client):
        client.send(f"{BODY}.\r\n")
        return client.getreply()[0]


async def walk(made, **options):
    """Walk in a thread."""
    return await asyncio.to_thread(Walk(made.port, trusting(made), **options).met)


def seen_at(phase):
    """Return where a client notices what happens in `phase`: it reads no reply while it sends the body."""
    return Phase.DOT if phase is Phase.BODY else phase


async def test_a_client_that_is_not_ours_walks_through_everything(sinkhole):
    """In `accept` the standard library's client goes through every phase, TLS and login included."""
    made = await sinkhole("accept")
    assert await walk(made) == FINE
    (kept,) = made.capture.messages
    assert (kept.is_tls, kept.is_authenticated, kept.body) == (True, True, BODY.encode())


@pytest.mark.parametrize("phase", HEALTHY)
async def test_each_fault_in_each_phase_strikes_there(sinkhole, phase):
    """Each fault strikes in the phase it is limited to, as its name says, and in no earlier one; nothing is kept."""
    wanted = {"drop": "gone", "stall": "silent"}
    for name in ("tempfail", "permfail", "421", "drop", "stall"):
        made = await sinkhole(f"{name}@{phase}")
        where, how = await walk(made, timeout_s=STALL_S if name == "stall" else PATIENCE_S)
        code = script.answer(made.source.mode, phase).code
        # What speaks where a handshake is due is no TLS to the client, whatever it says.
        expected = "gone" if phase is Phase.TLS and name != "stall" else wanted.get(name, code)
        assert (where, how) == (seen_at(phase), expected), name
        assert made.capture.total_count == (1 if phase is Phase.QUIT else 0)


async def test_slow_in_each_phase_is_only_slow(sinkhole):
    """A client with patience gets through `slow`, whichever phase it is in."""
    slow = [await sinkhole(f"slow@{phase}") for phase in HEALTHY]
    assert await asyncio.gather(*(walk(made) for made in slow)) == [FINE] * len(HEALTHY)


# Both kinds of 421.


async def test_a_421_that_keeps_the_connection_and_one_that_closes(sinkhole):
    """After the 421 of `defer` the same connection goes on; after that of `421@rcpt` it is gone, as RFC 5321 has it."""
    for mode, text, is_open in (
        ("defer", "4.3.2 Service temporarily unavailable", True),
        ("421@rcpt", "4.3.2 Service shutting down", False),
    ):
        made = await sinkhole(mode, credentials=None)
        assert await asyncio.to_thread(after_421, made.port) == (421, text, is_open)


def after_421(port):
    """Return the reply to RCPT, and whether the connection goes on after it."""
    with contextlib.closing(smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE_S)) as client:
        client.ehlo()
        client.mail("ann@a.test")
        code, text = client.rcpt("bob@a.test")
        try:
            return code, text.decode(), client.noop()[0] == 250
        except GONE:
            return code, text.decode(), False


# TLS and AUTH.


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("cert-expired", "certificate has expired"),
        ("cert-wrong-name", "certificate is not valid for 'localhost'"),
        ("cert-untrusted", "unable to get local issuer certificate"),
        ("tempfail@tls", "wrong version number"),
        ("drop@tls", ""),
    ],
)
async def test_odd_handshakes(sinkhole, mode, words, implicit):
    """A verifying client that trusts the sinkhole's authority meets exactly the fault of the mode; then `accept` is fine."""
    made = await sinkhole(mode, implicit_tls=implicit, credentials=None)

    def send():
        context = trusting(made)
        if implicit:
            client = smtplib.SMTP_SSL("localhost", made.port, context=context, timeout=PATIENCE_S)
        else:
            client = smtplib.SMTP("localhost", made.port, timeout=PATIENCE_S)
            client.starttls(context=context)
        with client:
            client.sendmail("ann@a.test", "bob@a.test", BODY)

    with pytest.raises((ssl.SSLError, ConnectionError, smtplib.SMTPServerDisconnected)) as fault:
        await asyncio.to_thread(send)
    assert words in str(fault.value)
    made.source.mode = parse_mode("accept")
    await asyncio.to_thread(send)
    assert [message.is_tls for message in made.capture.messages] == [True]


@pytest.mark.parametrize(("mode", "hidden"), [("no-starttls", "starttls"), ("no-auth", "auth")])
async def test_an_offer_is_hidden(sinkhole, mode, hidden):
    """What the mode hides is not offered, refused when it is asked for, and not demanded."""
    made = await sinkhole(mode, tls=Certificates() if hidden == "starttls" else None)

    def look():
        with smtplib.SMTP("127.0.0.1", made.port, timeout=PATIENCE_S) as client:
            client.ehlo()
            offers = set(client.esmtp_features) & {"starttls", "auth"}
            return offers, client.docmd(hidden.upper(), "" if hidden == "starttls" else "PLAIN")[0]

    offers, code = await asyncio.to_thread(look)
    assert (hidden in offers, code) == (False, 502)
    if hidden == "auth":
        await aiosmtplib.send(
            BODY, sender="a@a.test", recipients="b@a.test", hostname="127.0.0.1", port=made.port
        )
        assert made.capture.total_count == 1


# Chance, greylist, scripts.


async def fates(made, count=60, *, reverse=False):
    """Offer recipients to a sinkhole with aiosmtplib and return how each fared."""
    numbers = range(count)[::-1] if reverse else range(count)
    codes = {}
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=made.port, start_tls=False) as client:
        await client.mail("ann@a.test")
        for number in numbers:
            try:
                codes[number] = (await client.rcpt(f"b{number}@a.test")).code
            except aiosmtplib.SMTPRecipientRefused as refused:
                codes[number] = refused.code
    return codes


async def test_chance_follows_from_the_seed(sinkhole):
    """The same seed makes the same fates, in whatever order they are asked; another seed makes others; the share is met."""
    options = {"credentials": None}
    one = await fates(await sinkhole("tempfail@rcpt~40%", **options))
    assert await fates(await sinkhole("tempfail@rcpt~40%", **options), reverse=True) == one
    assert await fates(await sinkhole("tempfail@rcpt~40%", limits=Limits(seed=7), **options)) != one
    counted = Counter(one.values())
    assert set(counted) == {250, 450}
    assert 12 <= counted[450] <= 36
    made = await sinkhole("accept", **options)
    scripted = await asyncio.to_thread(offers, made.port, "bounce~50%+%d@sinkhole.test")
    assert scripted == {250, 550}


def offers(port, pattern, count=20):
    """Return the codes that the recipients of a pattern get from the standard library's point of view."""
    with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE_S) as client:
        client.ehlo()
        client.mail("ann@a.test")
        return {client.rcpt(pattern.replace("%d", str(number)))[0] for number in range(count)}


async def test_greylist_forgets_after_its_window(sinkhole):
    """Within the window the second try is let through; when it is over the same three are strangers again."""
    made = await sinkhole("greylist", credentials=None, limits=Limits(greylist_window_s=1e9))
    codes = []

    def try_it(sender):
        with smtplib.SMTP("127.0.0.1", made.port, timeout=PATIENCE_S) as client:
            client.ehlo()
            client.mail(sender)
            codes.append(client.rcpt("bob@a.test")[0])

    for sender in ("ann@a.test", "ann@a.test", "zoe@a.test"):
        await asyncio.to_thread(try_it, sender)
    assert codes == [421, 250, 421]
    made._shared.limits = Limits(greylist_window_s=-1.0)  # whatever was seen is out of it now
    await asyncio.to_thread(try_it, "ann@a.test")
    assert codes[3] == 421


# Through the queue.


@pytest.mark.parametrize(
    ("mode", "status", "certainty", "words"),
    [
        ("defer", "rendered", "not_delivered", "421 4.3.2 Service temporarily unavailable"),
        ("421@rcpt", "rendered", "not_delivered", "421 4.3.2 Service shutting down"),
        ("bounce", "failed", "not_delivered", "550 5.1.1 No such user here"),
        ("greylist", "rendered", "not_delivered", "421 4.7.1 Greylisted"),
        ("tempfail@dot", "rendered", "not_delivered", "451 4.3.0 Local error"),
        ("accept-then-drop", "rendered", "unknown", "dot"),
        ("drop@dot", "rendered", "unknown", "dot"),
        ("accept-then-421", "sent", "delivered", ""),
        ("stall@mail", "rendered", "not_delivered", "mail"),
        ("tempfail@auth", "rendered", "not_delivered", "454 4.7.0"),
        ("permfail@auth", "rendered", "not_delivered", "535 5.7.8"),
        ("tempfail@starttls", "rendered", "not_delivered", "454 4.7.0"),
        ("cert-expired", "rendered", "not_delivered", "expired"),
        ("cert-wrong-name", "rendered", "not_delivered", "localhost"),
        ("no-starttls", "rendered", "not_delivered", "STARTTLS"),
    ],
)
async def test_through_the_queue(serve, sinkhole, tmp_path, mode, status, certainty, words):
    """The service records what the sinkhole did; when it accepts, a forced flush delivers what was not ended."""
    made = await sinkhole(mode)
    authority = tmp_path / "ca.pem"
    authority.write_bytes(made._shared.tls.authority.pem)
    served = await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=f"localhost:{made.port}",
        MAIL_SMTP_TLS="starttls",
        MAIL_SMTP_TLS_CA_FILE=str(authority),
        MAIL_SMTP_USERNAME=LOGIN.username,
        MAIL_SMTP_PASSWORD=LOGIN.password,
        MAIL_SMTP_TIMEOUT="1s" if mode.startswith("stall") else "60s",
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
    )
    payload = {"to": ["ann@example.org"], "subject": "Hello", "text": "It works."}
    answer = await served.post(DELIVERIES, {"payload_mode": "rendered", "payload": payload})
    delivery_id = answer.json()["delivery_id"]
    await served.settled(delivery_id, status, attempts=1)
    (attempt,) = (await served.get(f"{DELIVERIES}/{delivery_id}/attempts")).json()["attempts"]
    assert attempt["certainty"] == certainty
    said = f"{attempt['phase']} {attempt['code']} {attempt['enhanced']} {attempt['reply']}"
    assert words in said
    made.source.mode = parse_mode("accept")
    if status == "rendered":
        await served.post("/api/v1/internal/queue/flush", {"all": True, "force": True})
        await served.settled(delivery_id, "sent")
    copies = {"failed": 0, "sent": 1}.get(status, 2 if mode == "accept-then-drop" else 1)
    assert made.capture.total_count == copies


def test_no_mode_is_left_out():
    """Each mode is named in the tests of this file, or is one that every other test of the sinkhole uses."""
    text = Path(__file__).read_text(encoding="utf-8")
    elsewhere = {ModeName.ACCEPT_LOG}  # its headers: test_sinkhole_server
    assert [name for name in ModeName if f'"{name}' not in text and name not in elsewhere] == []
