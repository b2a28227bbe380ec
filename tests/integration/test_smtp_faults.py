"""The SMTP client against a peer that plays scripts: what it says, and to whom each answer applies.

What a server can do to an attempt is in `hostile_servers`.
"""

import asyncio
import contextlib

import pytest
from smtp_servers import (
    EHLO_BARE,
    MESSAGE,
    POLITE,
    Act,
    Certificates,
    Drip,
    OpenFence,
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


@on_both_loops
async def test_each_reply_of_a_pipelined_group_has_its_own_time():
    """A slow server that answers every command within its timer is not cut off because the group takes longer."""
    slow = Drip(b"250 ok\r\n", 0.02)
    async with scripted_peer(rcpt=slow) as peer:
        recipients = [f"r{number}@example.test" for number in range(20)]
        outcome = await send(hop_to(peer.port, timers={"rcpt_s": 2.0}), mail(*recipients))
    assert outcome.severity is Severity.SUCCESS


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
            async with asyncio.timeout(20):
                while not peer.raw[0].endswith(b"last line\r\n"):
                    await asyncio.sleep(0.01)  # ASYNC110: what arrives raises no event
            bodies_at_commit.append((True, fence.dots_left))
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
            await asyncio.wait_for(peer.stalled.wait(), 20)
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
