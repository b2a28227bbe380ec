"""The SMTP client against a peer that plays scripts: each failure of a next hop becomes the right outcome."""

import asyncio
import contextlib

import pytest
from smtp_servers import (
    EHLO,
    EHLO_BARE,
    MESSAGE,
    PASSWORD,
    POLITE,
    USERNAME,
    Act,
    Certificates,
    Drip,
    OpenFence,
    free_port,
    hop_to,
    mail,
    on_both_loops,
    pool_of,
    scripted_peer,
    send,
)

from mailkeep.core.delivery import AttemptStatus, Certainty
from mailkeep.core.outcome import Phase, Scope, Severity
from mailkeep.smtp.envelope import dot_stuffed
from mailkeep.smtp.next_hop import TlsMode
from mailkeep.smtp.session import BLOCK_BYTES

PHASES = {
    "greeting": (Phase.GREETING, Scope.NEXT_HOP),
    "ehlo": (Phase.EHLO, Scope.NEXT_HOP),
    "auth": (Phase.AUTH, Scope.NEXT_HOP),
    "mail": (Phase.MAIL, Scope.MESSAGE),
    "rcpt": (Phase.RCPT, Scope.MESSAGE),
    "data": (Phase.DATA, Scope.MESSAGE),
    "dot": (Phase.DOT, Scope.MESSAGE),
}
EHLO_LOGIN = b"250-peer.test\r\n250-PIPELINING\r\n250 AUTH PLAIN\r\n"
EHLO_TLS = b"250-peer.test\r\n250 STARTTLS\r\n"
LARGE = b"Subject: large\r\n\r\n" + (b"x" * 76 + b"\r\n") * 100_000  # more than the kernels buffer


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority for the whole module."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@on_both_loops
async def test_a_pipelining_server_gets_the_envelope_in_one_write_and_the_message_as_it_is():
    """Commands are right, the body is dot-stuffed with pure CRLF, and the transcript shows every exchange masked."""
    async with scripted_peer() as peer:
        outcome = await send(hop_to(peer.port), mail("a@example.test", "b@example.test"))
    assert (outcome.status, outcome.certainty) == (AttemptStatus.PROVIDER_ACCEPTED, Certainty.DELIVERED)
    assert (outcome.severity, outcome.phase, outcome.rule) == (Severity.SUCCESS, Phase.DOT, "delivered")
    assert outcome.reason == "250 2.0.0 taken"
    assert [(recipient.ordinal, recipient.severity) for recipient in outcome.recipients] == [
        (0, Severity.SUCCESS),
        (1, Severity.SUCCESS),
    ]
    assert peer.raw[0].startswith(
        b"EHLO client.test\r\n"
        b"MAIL FROM:<from@client.test> SIZE=%d\r\n"
        % len(MESSAGE)
        + b"RCPT TO:<a@example.test>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n"
    )
    assert peer.bodies == [dot_stuffed(MESSAGE) + b".\r\n"]
    assert (
        peer.raw[0].replace(b"\r\n", b"").count(b"\r") == peer.raw[0].replace(b"\r\n", b"").count(b"\n") == 0
    )
    assert peer.commands[0][-1] == "QUIT"
    assert [(step.phase, step.sent) for step in outcome.steps[1:]] == [
        (Phase.GREETING, ""),
        (Phase.EHLO, "EHLO client.test"),
        (Phase.MAIL, f"MAIL FROM:<…> SIZE={len(MESSAGE)}"),
        (Phase.RCPT, "RCPT TO:<…>"),
        (Phase.RCPT, "RCPT TO:<…>"),
        (Phase.DATA, "DATA"),
        (Phase.DOT, f"{len(dot_stuffed(MESSAGE))} bytes and the final dot"),
    ]


@pytest.mark.parametrize("name", PHASES)
@on_both_loops
async def test_silence_in_each_phase_is_a_timeout_of_that_phase(name):
    """A server that stops answering frees the worker by the timer of that phase; after the dot the outcome is unknown."""
    phase, scope = PHASES[name]
    async with scripted_peer(**({"ehlo": EHLO_LOGIN} | {name: Act.STALL})) as peer:
        outcome = await send(
            hop_to(peer.port, username=USERNAME, password=PASSWORD, timers={f"{name}_s": 0.3})
        )
    unknown = phase is Phase.DOT
    assert (outcome.status, outcome.phase, outcome.scope) == (AttemptStatus.TIMED_OUT, phase, scope)
    assert outcome.severity is (Severity.UNKNOWN if unknown else Severity.TRANSIENT)
    assert outcome.certainty is (Certainty.UNKNOWN if unknown else Certainty.NOT_DELIVERED)
    assert (outcome.steps[-1].phase, outcome.steps[-1].reply) == (phase, "")


@pytest.mark.parametrize("name", PHASES)
@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
@on_both_loops
async def test_a_connection_that_ends_in_each_phase_is_a_failure_of_that_phase(name, act):
    """Close and reset are told from refusals; after the dot the outcome is unknown, before it certainly not delivered."""
    phase, scope = PHASES[name]
    async with scripted_peer(**({"ehlo": EHLO_LOGIN} | {name: act})) as peer:
        outcome = await send(hop_to(peer.port, username=USERNAME, password=PASSWORD))
    unknown = phase is Phase.DOT
    assert (outcome.status, outcome.phase, outcome.scope) == (AttemptStatus.TRANSPORT_FAILED, phase, scope)
    assert outcome.severity is (Severity.UNKNOWN if unknown else Severity.TRANSIENT)
    assert outcome.certainty is (Certainty.UNKNOWN if unknown else Certainty.NOT_DELIVERED)


@pytest.mark.parametrize("name", ["greeting", "ehlo", "mail", "data", "dot"])
@on_both_loops
async def test_a_dripping_server_does_not_outlast_the_timer(name):
    """The timer covers the whole reply: a byte every 50 ms of an endless reply ends it all the same."""
    async with scripted_peer(**{name: Drip(b"250-" + b"x" * 1000, 0.05)}) as peer:
        outcome = await send(hop_to(peer.port, timers={f"{name}_s": 0.3}))
    assert (outcome.status, outcome.phase) == (AttemptStatus.TIMED_OUT, PHASES[name][0])


@on_both_loops
async def test_a_tarpit_is_left_when_the_session_has_lasted_too_long():
    """Each answer comes within its timer, and yet all of them take too long: a timeout before the dot, none after it."""
    slow = Drip(b"250 ok\r\n", 0.05)
    recipients = [f"r{number}@example.test" for number in range(100)]
    async with scripted_peer(rcpt=slow) as peer:
        outcome = await send(hop_to(peer.port, timers={"session_s": 1.0}), mail(*recipients))
    assert (outcome.status, outcome.phase) == (AttemptStatus.TIMED_OUT, Phase.RCPT)
    assert outcome.certainty is Certainty.NOT_DELIVERED
    async with scripted_peer(dot=Drip(b"250 2.0.0 taken\r\n", 0.1)) as peer:
        outcome = await send(hop_to(peer.port, timers={"session_s": 1.0}))
    assert outcome.certainty is Certainty.DELIVERED


@on_both_loops
async def test_each_reply_of_a_pipelined_group_has_its_own_time():
    """A slow server that answers every command within its timer is not cut off because the group takes longer."""
    slow = Drip(b"250 ok\r\n", 0.02)
    async with scripted_peer(rcpt=slow) as peer:
        recipients = [f"r{number}@example.test" for number in range(20)]
        outcome = await send(hop_to(peer.port, timers={"rcpt_s": 2.0}), mail(*recipients))
    assert outcome.severity is Severity.SUCCESS


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"25 short\r\n",
        b"250 bare\n",
        b"250 nul\0\r\n",
        b"666 evil\r\n",
        b"250-a\r\n251 b\r\n",
        b"x" * 5000,
        b"250-a\r\n" * 5000,
    ],
)
@pytest.mark.parametrize("name", ["greeting", "ehlo", "mail", "dot"])
async def test_what_is_no_reply_breaks_the_protocol(name, garbage):
    """Malformed answers end the attempt as transient, and as unknown after the dot; never as sent."""
    async with scripted_peer(**{name: garbage}) as peer:
        outcome = await send(hop_to(peer.port))
    assert (outcome.status, outcome.phase) == (AttemptStatus.TRANSPORT_FAILED, PHASES[name][0])
    if name == "dot":
        assert (outcome.severity, outcome.certainty) == (Severity.UNKNOWN, Certainty.UNKNOWN)
    else:
        assert (outcome.severity, outcome.scope) == (Severity.TRANSIENT, Scope.NEXT_HOP)


@pytest.mark.parametrize("reply", [b"100 hm\r\n", b"354 again\r\n"])
async def test_a_reply_to_the_dot_that_answers_nothing_is_unknown(reply):
    """1yz and 3yz neither take nor refuse a message."""
    async with scripted_peer(dot=reply) as peer:
        outcome = await send(hop_to(peer.port))
    assert (outcome.severity, outcome.certainty, outcome.rule) == (
        Severity.UNKNOWN,
        Certainty.UNKNOWN,
        "reply_unreadable",
    )


@pytest.mark.parametrize("code", [b"250", b"251 ok", b"299 odd but positive", b"250-two\r\n250 lines"])
async def test_any_positive_reply_to_the_dot_is_a_delivery(code):
    """The first digit of a well-formed reply decides."""
    async with scripted_peer(dot=code + b"\r\n") as peer:
        outcome = await send(hop_to(peer.port))
    assert outcome.certainty is Certainty.DELIVERED


@pytest.mark.parametrize("code", [b"251 will forward", b"252 can not verify"])
async def test_rcpt_251_and_252_accept_the_recipient(code):
    """Both are success (RFC 5321 section 4.2.3)."""
    async with scripted_peer(rcpt=code + b"\r\n") as peer:
        outcome = await send(hop_to(peer.port))
    assert outcome.severity is Severity.SUCCESS


SHIFTED = {
    "a doubled reply to MAIL": {"mail": b"250 ok\r\n250 ok\r\n", "rcpt": b"550 5.1.1 no such user\r\n"},
    "the reply to the dot before the dot": {
        "data": b"354 go on\r\n250 2.0.0 taken\r\n",
        "dot": b"554 no\r\n",
    },
    "half a reply before the dot": {"data": b"354 go on\r\n2", "dot": b"554 no\r\n"},
    "a doubled greeting": {"greeting": b"220 hi\r\n220 hi\r\n"},
    "a doubled reply to EHLO": {"ehlo": EHLO + b"250 ok\r\n"},
}


@pytest.mark.parametrize("name", SHIFTED)
@on_both_loops
async def test_a_shifted_stream_never_counts(name):
    """Replies that nobody asked for end the session as a protocol failure: nothing is sent, nobody suppressed."""
    async with scripted_peer(**SHIFTED[name]) as peer:
        outcome = await send(hop_to(peer.port), mail("a@example.test", "b@example.test"))
    assert (outcome.status, outcome.severity) == (AttemptStatus.TRANSPORT_FAILED, Severity.TRANSIENT)
    assert (outcome.certainty, outcome.rule) == (Certainty.NOT_DELIVERED, "broken_protocol")
    assert not any(recipient.suppress for recipient in outcome.recipients)
    assert peer.bodies == []


@on_both_loops
async def test_a_reply_that_comes_late_but_before_the_dot_is_noticed():
    """Bytes that wait in the kernel count as unread too, whether or not the event loop has read them yet."""
    async with scripted_peer(ehlo=EHLO_BARE, data=b"354 go on\r\n") as peer:
        fence = OpenFence(commit=lambda: asyncio.sleep(0.2, True))
        peer.answers["BODY"] = b"250 2.0.0 taken\r\n"
        outcome = await send(hop_to(peer.port), fence=fence)
    assert (outcome.certainty, outcome.rule, fence.dots_left) == (
        Certainty.NOT_DELIVERED,
        "broken_protocol",
        0,
    )


@on_both_loops
async def test_without_pipelining_commands_go_one_by_one():
    """A server that does not offer PIPELINING never has two commands to read; a refused MAIL ends it there."""
    async with scripted_peer(ehlo=EHLO_BARE) as peer:
        outcome = await send(hop_to(peer.port), mail("a@example.test", "b@example.test"))
        assert outcome.severity is Severity.SUCCESS
        assert peer.commands == [["EHLO", "MAIL", "RCPT", "RCPT", "DATA", ".", "QUIT"]]
    async with scripted_peer(ehlo=EHLO_BARE, mail=b"451 4.3.0 later\r\n") as peer:
        outcome = await send(hop_to(peer.port))
        assert (outcome.phase, outcome.scope, outcome.code) == (Phase.MAIL, Scope.SENDER, 451)
        assert peer.commands[0][:3] == ["EHLO", "MAIL", "RSET"]


async def test_helo_follows_a_refused_ehlo():
    """A server that knows no EHLO gets HELO, and mail without extensions."""
    async with scripted_peer(ehlo=b"502 5.5.1 what?\r\n") as peer:
        outcome = await send(hop_to(peer.port))
    assert outcome.severity is Severity.SUCCESS
    assert peer.commands[0][:4] == ["EHLO", "HELO", "MAIL", "RCPT"]
    assert b"SIZE=" not in peer.raw[0]


async def test_helo_can_not_replace_a_required_starttls():
    """With TLS required there is no way on after HELO, and not a byte of mail in clear."""
    async with scripted_peer(ehlo=b"502 5.5.1 what?\r\n") as peer:
        outcome = await send(hop_to(peer.port, tls=TlsMode.STARTTLS))
    assert (outcome.rule, outcome.scope) == ("starttls_not_offered", Scope.NEXT_HOP)
    assert peer.commands == [["EHLO", "HELO"]]


@on_both_loops
async def test_all_recipients_refused_but_354_gets_a_lone_dot():
    """RFC 2920 section 3.1: the body stays here, the server gets an empty end, and each recipient its own verdict."""
    answers = [b"550 5.1.1 unknown\r\n", b"450 4.2.0 later\r\n"]
    async with scripted_peer(rcpt=answers, dot=b"554 5.5.1 no valid recipients\r\n") as peer:
        outcome = await send(hop_to(peer.port), mail("a@example.test", "b@example.test"))
    assert peer.bodies == [b".\r\n"]
    assert [recipient.rule for recipient in outcome.recipients] == ["rcpt_mailbox_gone", "rcpt_deferred"]
    assert [recipient.suppress for recipient in outcome.recipients] == [True, False]
    assert (outcome.status, outcome.phase, outcome.severity) == (
        AttemptStatus.PROVIDER_REJECTED,
        Phase.RCPT,
        Severity.TRANSIENT,
    )
    assert outcome.certainty is Certainty.NOT_DELIVERED


async def test_a_lone_dot_is_not_a_delivery_even_if_the_server_says_250():
    """Whatever a server answers to the lone dot, nothing was sent."""
    async with scripted_peer(rcpt=b"550 5.1.1 unknown\r\n", dot=b"250 2.0.0 taken\r\n") as peer:
        outcome = await send(hop_to(peer.port))
    assert (outcome.certainty, outcome.severity) == (Certainty.NOT_DELIVERED, Severity.PERMANENT)


async def test_mail_refused_with_recipients_accepted_and_354_drops_the_connection():
    """Neither a body nor a dot may follow: either could deliver something."""
    async with scripted_peer(mail=b"550 5.7.1 not you\r\n") as peer:
        outcome = await send(hop_to(peer.port))
    assert (outcome.phase, outcome.rule) == (Phase.MAIL, "mail_sender_refused")
    assert peer.bodies == []
    assert peer.commands == [["EHLO", "MAIL", "RCPT", "DATA"]]


async def test_data_answered_250_sends_no_body():
    """Only 3yz asks for the body."""
    async with scripted_peer(data=b"250 fine\r\n") as peer:
        outcome = await send(hop_to(peer.port))
    assert (outcome.phase, outcome.rule, outcome.certainty) == (
        Phase.DATA,
        "broken_protocol",
        Certainty.NOT_DELIVERED,
    )
    assert peer.commands == [["EHLO", "MAIL", "RCPT", "DATA"]]


@pytest.mark.parametrize(
    ("name", "phase", "scope"),
    [
        ("greeting", Phase.GREETING, Scope.NEXT_HOP),
        ("ehlo", Phase.EHLO, Scope.NEXT_HOP),
        ("mail", Phase.MAIL, Scope.SENDER),
        ("rcpt", Phase.RCPT, Scope.RECIPIENT),
        ("data", Phase.DATA, Scope.MESSAGE),
        ("dot", Phase.DOT, Scope.MESSAGE),
    ],
)
@pytest.mark.parametrize("ehlo", [EHLO, EHLO_BARE], ids=["pipelined", "one by one"])
async def test_421_ends_the_session_in_each_phase(name, phase, scope, ehlo):
    """421 is transient, never suppresses, and nothing more is said on that connection."""
    answers = {"ehlo": ehlo} | {name: b"421 4.3.2 Service temporarily unavailable\r\n"}
    async with scripted_peer(**answers) as peer:
        outcome = await send(hop_to(peer.port))
        await asyncio.sleep(0.05)
    assert (outcome.status, outcome.phase, outcome.scope) == (AttemptStatus.PROVIDER_REJECTED, phase, scope)
    assert (outcome.severity, outcome.certainty) == (Severity.TRANSIENT, Certainty.NOT_DELIVERED)
    assert outcome.reason == "421 4.3.2 Service temporarily unavailable"
    assert "QUIT" not in peer.commands[0]
    assert "RSET" not in peer.commands[0]


async def test_421_in_the_middle_leaves_the_others_open():
    """Recipients accepted before a 421, and those after it, are open again; one refused for good stays refused."""
    answers = [b"250 ok\r\n", b"550 5.1.1 unknown\r\n", b"421 4.3.2 going down\r\n", b"250 ok\r\n"]
    async with scripted_peer(rcpt=answers) as peer:
        recipients = [f"r{number}@example.test" for number in range(4)]
        outcome = await send(hop_to(peer.port), mail(*recipients))
    assert [recipient.severity for recipient in outcome.recipients] == [
        Severity.TRANSIENT,
        Severity.PERMANENT,
        Severity.TRANSIENT,
        Severity.TRANSIENT,
    ]
    assert peer.bodies == []


async def test_mixed_recipients_have_their_own_outcomes():
    """The accepted get the message; the answer to the dot is theirs, the others keep what RCPT said."""
    answers = [b"250 ok\r\n", b"550 5.1.1 <b@example.test> unknown\r\n", b"452 4.5.3 too many\r\n"]
    async with scripted_peer(rcpt=answers) as peer:
        outcome = await send(hop_to(peer.port), mail("a@example.test", "b@example.test", "c@example.test"))
    assert [(recipient.severity, recipient.code) for recipient in outcome.recipients] == [
        (Severity.SUCCESS, 250),
        (Severity.PERMANENT, 550),
        (Severity.TRANSIENT, 452),
    ]
    assert outcome.recipients[1].text == "<…@…> unknown"
    assert (outcome.status, outcome.certainty) == (AttemptStatus.PROVIDER_ACCEPTED, Certainty.DELIVERED)
    assert (outcome.severity, outcome.code, outcome.phase) == (Severity.TRANSIENT, 452, Phase.DOT)


async def test_a_lost_reply_after_the_dot_is_unknown_for_the_accepted_only():
    """The recipient refused before keeps its refusal."""
    async with scripted_peer(rcpt=[b"250 ok\r\n", b"550 5.1.1 unknown\r\n"], dot=Act.CLOSE) as peer:
        outcome = await send(hop_to(peer.port), mail("a@example.test", "b@example.test"))
    assert [recipient.severity for recipient in outcome.recipients] == [Severity.UNKNOWN, Severity.PERMANENT]
    assert (outcome.severity, outcome.rule) == (Severity.UNKNOWN, "reply_lost")


@pytest.mark.parametrize(
    ("extensions", "message", "options", "enhanced"),
    [
        (b"250 SIZE 50\r\n", MESSAGE, {}, "5.3.4"),
        (b"250 8BITMIME\r\n", MESSAGE, {"smtputf8": True}, "5.6.7"),
        (b"250 SMTPUTF8\r\n", "Subject: grüße\r\n\r\n".encode(), {}, "5.6.3"),
        (b"250 SMTPUTF8\r\n", MESSAGE, {"eightbit": True}, "5.6.3"),
    ],
)
async def test_what_the_server_does_not_offer_fails_for_good_before_mail(
    extensions, message, options, enhanced
):
    """SIZE, SMTPUTF8 and 8BITMIME are checked against the announcement; the connection stays good for other mail."""
    async with scripted_peer(ehlo=b"250-peer.test\r\n" + extensions) as peer:
        hop = hop_to(peer.port)
        async with pool_of(hop) as pool:
            outcome = await pool.send(hop, mail(message=message, **options), OpenFence())
            await asyncio.sleep(0.05)
            assert (
                await pool.send(hop, mail(message=b"a: b\r\n"), OpenFence())
            ).certainty is Certainty.DELIVERED
    assert (outcome.severity, outcome.scope, outcome.enhanced) == (
        Severity.PERMANENT,
        Scope.MESSAGE,
        enhanced,
    )
    assert (outcome.status, outcome.certainty) == (AttemptStatus.PROVIDER_REJECTED, Certainty.NOT_DELIVERED)
    assert len(peer.commands) == 1
    assert peer.commands[0][:3] == ["EHLO", "RSET", "MAIL"]


async def test_an_internationalised_address_goes_as_utf8():
    """With SMTPUTF8 and 8BITMIME offered both are asked for, and the address is UTF-8 on the wire."""
    async with scripted_peer(ehlo=b"250-peer.test\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n") as peer:
        outcome = await send(
            hop_to(peer.port), mail("grün@example.test", message="Subject: ö\r\n\r\n".encode())
        )
    assert outcome.severity is Severity.SUCCESS
    assert b"MAIL FROM:<from@client.test> BODY=8BITMIME SMTPUTF8\r\n" in peer.raw[0]
    assert "RCPT TO:<grün@example.test>\r\n".encode() in peer.raw[0]


async def test_a_bounce_has_an_empty_sender():
    """The null reverse-path is `<>`."""
    async with scripted_peer() as peer:
        assert (await send(hop_to(peer.port), mail(sender=""))).severity is Severity.SUCCESS
    assert b"MAIL FROM:<> " in peer.raw[0]


@pytest.mark.parametrize(
    "envelope",
    [
        mail("a@example.test>\r\nRCPT TO:<evil@example.test"),
        mail("a@example.test\n"),
        mail("a b@example.test"),
        mail(sender="a@example.test> SIZE=1"),
        mail(message=b"Subject: x\n\nbare"),
        mail(message=b"Subject: x\r\n\r\nsmuggled\n.\r\nMAIL FROM:<evil@example.test>\r\n"),
        mail(message=b"Subject: x\r\n\0"),
    ],
)
async def test_an_unsafe_envelope_never_reaches_the_wire(envelope):
    """Injection and smuggling fail for good here, before a connection is opened."""
    async with scripted_peer() as peer:
        outcome = await send(hop_to(peer.port), envelope)
    assert (outcome.severity, outcome.rule) == (Severity.PERMANENT, "unsafe_envelope")
    assert peer.commands == []
    assert "evil" not in outcome.text


@on_both_loops
async def test_nobody_listening_is_an_outage():
    """A refused connection concerns the next hop, not the message."""
    outcome = await send(hop_to(free_port()))
    assert (outcome.status, outcome.phase, outcome.scope) == (
        AttemptStatus.TRANSPORT_FAILED,
        Phase.CONNECT,
        Scope.NEXT_HOP,
    )
    assert outcome.text == "connection refused"


async def test_a_host_without_an_address_is_an_outage():
    """A name that does not resolve, or can not exist, concerns the next hop."""
    for host in ("nowhere.invalid", "a" * 70 + ".invalid"):
        outcome = await send(hop_to(25, host=host))
        assert (outcome.phase, outcome.scope, outcome.rule) == (
            Phase.CONNECT,
            Scope.NEXT_HOP,
            "no_connection",
        )


# -- the body ---------------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_large_body_arrives_whole():
    """Bodies of many blocks pass the backpressure and arrive byte by byte."""
    async with scripted_peer(ehlo=EHLO_BARE) as peer:
        outcome = await send(hop_to(peer.port), mail(message=LARGE))
    assert outcome.severity is Severity.SUCCESS
    assert peer.bodies == [LARGE + b".\r\n"]


@pytest.mark.parametrize("extra", range(-4, 4))
async def test_the_final_dot_is_right_wherever_the_blocks_end(extra):
    """Bodies around the size of a block, with a dot at the seam, arrive as sent."""
    head, tail = b"Subject: x\r\n\r\n", b"\r\n.\r\n"
    message = head + b"y" * (BLOCK_BYTES + extra - len(head) - len(tail)) + tail
    async with scripted_peer(ehlo=EHLO_BARE) as peer:
        assert (await send(hop_to(peer.port), mail(message=message))).severity is Severity.SUCCESS
    assert peer.bodies == [dot_stuffed(message) + b".\r\n"]


@on_both_loops
async def test_a_stalled_body_is_a_timeout_of_the_body():
    """A server that stops reading is cut by the block timer; the dot has not left, so nothing is unknown."""
    async with scripted_peer(ehlo=EHLO_BARE, body=Act.STALL) as peer:
        fence = OpenFence()
        outcome = await send(hop_to(peer.port, timers={"block_s": 0.4}), mail(message=LARGE), fence)
    assert (outcome.status, outcome.phase) == (AttemptStatus.TIMED_OUT, Phase.BODY)
    assert (outcome.certainty, fence.dots_left) == (Certainty.NOT_DELIVERED, 0)


@pytest.mark.parametrize(
    ("reply", "severity"),
    [(b"552 5.3.4 too big\r\n", Severity.PERMANENT), (b"421 4.3.0 bye\r\n", Severity.TRANSIENT)],
)
@on_both_loops
async def test_a_refusal_while_the_body_flows_decides(reply, severity):
    """RFC 5321 section 4.2.5: the reply is read, the rest of the body stays here, the dot never leaves."""
    async with scripted_peer(ehlo=EHLO_BARE, body=reply) as peer:
        fence = OpenFence()
        outcome = await send(hop_to(peer.port), mail(message=LARGE), fence)
    assert (outcome.status, outcome.phase, outcome.severity) == (
        AttemptStatus.PROVIDER_REJECTED,
        Phase.BODY,
        severity,
    )
    assert (outcome.code, fence.dots_left) == (int(reply[:3]), 0)
    assert b"RSET" not in peer.raw[0]  # it would be read as a line of the body


@on_both_loops
async def test_a_refusal_followed_by_a_hang_up_is_still_read():
    """The reply that waits behind a broken connection is taken, not the broken connection."""
    answered = asyncio.Event()

    async def refuse(reader, writer):
        writer.write(b"220 hi\r\n")
        for answer in (b"250 hi\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go on\r\n"):
            await reader.readline()
            writer.write(answer)
        await reader.read(100)
        writer.write(b"552 5.3.4 too big\r\n")
        await writer.drain()
        writer.transport.abort()  # with input unread: the kernel sends a reset
        answered.set()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        outcome = await send(hop_to(server.sockets[0].getsockname()[1]), mail(message=LARGE))
    assert answered.is_set()
    assert (outcome.phase, outcome.code, outcome.severity) == (Phase.BODY, 552, Severity.PERMANENT)


@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
@on_both_loops
async def test_a_connection_that_ends_while_the_body_flows_is_certain(act):
    """Before the dot, whatever happens, nothing was delivered."""
    async with scripted_peer(ehlo=EHLO_BARE, body=act) as peer:
        outcome = await send(hop_to(peer.port), mail(message=LARGE))
    assert (outcome.status, outcome.phase) == (AttemptStatus.TRANSPORT_FAILED, Phase.BODY)
    assert (outcome.severity, outcome.certainty) == (Severity.TRANSIENT, Certainty.NOT_DELIVERED)


# -- the fence ---------------------------------------------------------------------------------------------------------


async def test_a_lost_claim_opens_no_transaction():
    """Without the claim MAIL is not said."""
    async with scripted_peer() as peer:
        outcome = await send(hop_to(peer.port), fence=OpenFence(may_open=False))
    assert (outcome.rule, outcome.certainty, outcome.phase) == (
        "claim_lost",
        Certainty.NOT_DELIVERED,
        Phase.MAIL,
    )
    assert "MAIL" not in peer.commands[0]


async def _fail():
    raise ConnectionError("the database is gone")


@pytest.mark.parametrize(
    "fence",
    [
        OpenFence(may_dot=False),
        OpenFence(may_dot=False, commit=lambda: asyncio.sleep(0, True)),
        OpenFence(commit=lambda: asyncio.sleep(0, False)),
        OpenFence(commit=_fail),
    ],
    ids=["claim lost", "claim lost while committing", "commit refused", "commit failed"],
)
@on_both_loops
async def test_without_the_fence_no_dot_leaves(fence):
    """The claim is asked at the last moment; a mark that could not be made durable forbids the dot as well."""
    async with scripted_peer(ehlo=EHLO_BARE) as peer:
        outcome = await send(hop_to(peer.port), fence=fence)
        await asyncio.sleep(0.05)
    assert (outcome.rule, outcome.scope, outcome.severity) == (
        "claim_lost",
        Scope.MESSAGE,
        Severity.TRANSIENT,
    )
    assert (outcome.certainty, fence.dots_left) == (Certainty.NOT_DELIVERED, 0)
    assert peer.bodies == []


@on_both_loops
async def test_a_committed_dot_follows_the_whole_body():
    """For at_most_once all but the dot is out before the mark is made; `dot_left` is called once, before the reply."""
    bodies_at_commit = []

    async with scripted_peer(ehlo=EHLO_BARE) as peer:

        async def commit():
            await asyncio.sleep(0.1)
            bodies_at_commit.append((peer.raw[0].endswith(b"last line\r\n"), fence.dots_left))
            return True

        fence = OpenFence(commit=commit)
        outcome = await send(hop_to(peer.port), fence=fence)
    assert outcome.severity is Severity.SUCCESS
    assert bodies_at_commit == [(True, 0)]
    assert fence.dots_left == 1
    assert peer.bodies == [dot_stuffed(MESSAGE) + b".\r\n"]


@pytest.mark.parametrize("name", ["greeting", "ehlo", "mail", "dot"])
@on_both_loops
async def test_cancelling_aborts_the_connection_and_tells_whether_the_dot_left(name):
    """CancelledError comes through; the place is free again; `dot_left` says if the outcome is unknown."""
    async with scripted_peer(**{name: [Act.STALL]}) as peer:
        hop, fence = hop_to(peer.port, max_connections=1), OpenFence()
        async with pool_of(hop) as pool:
            sending = asyncio.create_task(pool.send(hop, mail(), fence))
            await asyncio.sleep(0.1)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert fence.dots_left == (1 if name == "dot" else 0)
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(peer.readers[0].read(), 20)  # comes to an end: the connection is gone
            peer.answers |= POLITE
            outcome = await asyncio.wait_for(pool.send(hop, mail(), OpenFence()), 20)
            assert outcome.severity is Severity.SUCCESS


# -- TLS, where the script matters (honest servers are in test_smtp_servers) --------------------------------------------


@pytest.mark.parametrize(
    "answers",
    [
        {"ehlo": EHLO_BARE},
        {"ehlo": EHLO_TLS, "starttls": b"454 4.7.0 not now\r\n"},
        {"ehlo": EHLO_TLS, "starttls": b"502 5.5.1 what?\r\n"},
        {"ehlo": EHLO_TLS, "starttls": b"220 go on\r\n250 injected\r\n"},
        {"ehlo": EHLO_TLS, "starttls": b"220 go on\r\nx"},
        {"ehlo": EHLO_TLS, "starttls": b"220 go on\r\n", "handshake": b"garbage instead of a handshake\r\n"},
        {"ehlo": EHLO_TLS, "starttls": Act.CLOSE},
    ],
    ids=["stripped", "454", "502", "reply behind 220", "byte behind 220", "no handshake", "closed"],
)
@on_both_loops
async def test_without_the_required_tls_not_a_byte_of_mail_or_login_leaves(answers):
    """However STARTTLS fails, the hop is out, and neither MAIL nor AUTH was said."""
    async with scripted_peer(**answers) as peer:
        hop = hop_to(
            peer.port,
            tls=TlsMode.STARTTLS,
            username=USERNAME,
            password=PASSWORD,
            timers={"starttls_s": 0.5},
        )
        outcome = await send(hop)
    assert (outcome.severity, outcome.scope) == (Severity.TRANSIENT, Scope.NEXT_HOP)
    assert outcome.phase in (Phase.STARTTLS, Phase.TLS)
    assert b"MAIL" not in peer.raw[0]
    assert b"AUTH" not in peer.raw[0]


@on_both_loops
async def test_a_handshake_that_never_ends_is_a_timeout_of_tls():
    """The handshake has a timer."""
    async with scripted_peer(ehlo=EHLO_TLS, handshake=Act.STALL) as peer:
        outcome = await send(hop_to(peer.port, tls=TlsMode.STARTTLS, timers={"starttls_s": 0.4}))
    assert (outcome.status, outcome.phase) == (AttemptStatus.TIMED_OUT, Phase.TLS)


@on_both_loops
async def test_what_was_offered_in_clear_is_forgotten(certificates):
    """After STARTTLS only the second EHLO counts: PIPELINING offered in clear alone is not used."""
    ehlo = [b"250-peer.test\r\n250-PIPELINING\r\n250-SIZE 10\r\n250 STARTTLS\r\n", EHLO_BARE]
    async with scripted_peer(tls=certificates.server_context("localhost"), ehlo=ehlo) as peer:
        hop = hop_to(peer.port, host="localhost", tls=TlsMode.STARTTLS, ca_file=certificates.ca_file)
        outcome = await send(hop)
    assert outcome.severity is Severity.SUCCESS
    assert [step.phase for step in outcome.steps].count(Phase.EHLO) == 2
    assert "TLSv1" in next(step.reply for step in outcome.steps if step.phase is Phase.TLS)
    assert b"SIZE=" not in peer.raw[0]


@pytest.mark.parametrize("starttls", [None, b"454 4.7.0 not now\r\n"])
async def test_opportunistic_goes_on_in_clear_but_never_logs_in(starttls):
    """Mail goes in clear where STARTTLS is missing or refused; a login does not."""
    answers = {"ehlo": EHLO_BARE} if starttls is None else {"ehlo": EHLO_TLS, "starttls": starttls}
    async with scripted_peer(**answers) as peer:
        assert (await send(hop_to(peer.port, tls=TlsMode.OPPORTUNISTIC))).severity is Severity.SUCCESS
        outcome = await send(
            hop_to(peer.port, tls=TlsMode.OPPORTUNISTIC, username=USERNAME, password=PASSWORD)
        )
    assert (outcome.rule, outcome.scope, outcome.phase) == ("login_in_clear", Scope.CREDENTIAL, Phase.AUTH)
    assert "AUTH" not in peer.commands[1]


# -- AUTH ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "rule", "scope"),
    [
        (b"535 5.7.8 wrong\r\n", "login_refused", Scope.CREDENTIAL),
        (b"534 5.7.9 too weak\r\n", "login_refused", Scope.CREDENTIAL),
        (b"454 4.7.0 later\r\n", "login_deferred", Scope.NEXT_HOP),
        (b"421 4.7.0 bye\r\n", "next_hop_closing", Scope.NEXT_HOP),
        (b"334 more?\r\n", "unexpected_reply", Scope.NEXT_HOP),
    ],
)
async def test_a_refused_login_parks_the_mail(reply, rule, scope):
    """No answer to AUTH is the message's fault: all of them are transient, and MAIL is not said."""
    async with scripted_peer(ehlo=EHLO_LOGIN, auth=reply) as peer:
        outcome = await send(hop_to(peer.port, username=USERNAME, password=PASSWORD))
    assert (outcome.phase, outcome.rule, outcome.scope) == (Phase.AUTH, rule, scope)
    assert outcome.severity is Severity.TRANSIENT
    assert "MAIL" not in peer.commands[0]
    assert PASSWORD not in repr(outcome)


async def test_no_mechanism_of_ours_is_a_matter_of_the_credential():
    """A login that can't be used does not mean mail without login."""
    async with scripted_peer(ehlo=b"250-peer.test\r\n250 AUTH XOAUTH2 SCRAM-SHA-1\r\n") as peer:
        outcome = await send(hop_to(peer.port, username=USERNAME, password=PASSWORD))
    assert (outcome.rule, outcome.scope) == ("login_not_offered", Scope.CREDENTIAL)
    assert "MAIL" not in peer.commands[0]
