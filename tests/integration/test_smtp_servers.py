"""The SMTP client against servers not written here: aiosmtpd, Postfix, smtp-sink; aiosmtplib is the oracle."""

import asyncio
import itertools

import aiosmtplib
import pytest
from smtp_servers import (
    MESSAGE,
    PASSWORD,
    USERNAME,
    Certificates,
    Inbox,
    OpenFence,
    aiosmtpd_server,
    hop_to,
    login_checker,
    mail,
    on_both_loops,
    pool_of,
    postfix_server,
    send,
    smtp_sink,
)

from mailkeep.core.delivery import Certainty
from mailkeep.core.outcome import Phase, Scope, Severity
from mailkeep.smtp.next_hop import TlsMode

LOGIN = {"username": USERNAME, "password": PASSWORD}
MESSAGES = {
    "dots": MESSAGE,
    "only dots": b"a: b\r\n\r\n.\r\n..\r\n...\r\n",
    "dot first": b".a: b\r\n\r\nbody\r\n",
    "empty lines": b"a: b\r\n\r\n\r\n\r\n",
    "long lines": b"a: b\r\n\r\n" + b"x" * 990 + b"\r\n." + b"y" * 990 + b"\r\n",
    "many blocks": b"a: b\r\n\r\n" + b".line\r\n" * 50_000,
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority for the whole module."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("pipelining", [True, False])
@on_both_loops
async def test_aiosmtpd_gets_the_envelope_and_the_bytes(name, pipelining):
    """What aiosmtpd unstuffs is the message, byte by byte, for the sender and recipients given."""
    inbox = Inbox(pipelining=pipelining)
    with aiosmtpd_server(inbox) as port:
        outcome = await send(hop_to(port), mail("a@example.test", "b@example.test", message=MESSAGES[name]))
    assert outcome.certainty is Certainty.DELIVERED
    (received,) = inbox.messages
    assert received.mail_from == "from@client.test"
    assert received.rcpt_tos == ["a@example.test", "b@example.test"]
    assert received.content == MESSAGES[name]


@pytest.mark.parametrize(
    "envelope",
    [
        mail(),
        mail("a@example.test", '"quoted local"@example.test'),
        mail(sender=""),
        mail("grün@example.test", message="Subject: ö\r\n\r\n.\r\n".encode()),
        mail(message=MESSAGES["only dots"]),
    ],
)
async def test_the_server_sees_what_it_sees_from_aiosmtplib(envelope):
    """The oracle and our client give the same envelope and content at the server, for the same input."""
    ours, theirs = Inbox(), Inbox()
    with aiosmtpd_server(ours) as port:
        assert (await send(hop_to(port), envelope)).severity is Severity.SUCCESS
    with aiosmtpd_server(theirs) as port:
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False) as oracle:
            options = ["SMTPUTF8", "BODY=8BITMIME"] if envelope.needs_smtputf8 else []
            await oracle.sendmail(envelope.sender, envelope.addresses, envelope.message, mail_options=options)
    (mine,), (oracles,) = ours.messages, theirs.messages
    assert (mine.mail_from, mine.rcpt_tos) == (oracles.mail_from, oracles.rcpt_tos)
    assert (mine.content, mine.smtp_utf8) == (oracles.content, oracles.smtp_utf8)


async def test_aiosmtpd_refuses_some_recipients():
    """Mixed answers at RCPT: each recipient has its own outcome, the accepted get the mail."""
    inbox = Inbox({"gone@example.test": "550 5.1.1 no such user", "full@example.test": "452 4.2.2 full"})
    with aiosmtpd_server(inbox) as port:
        outcome = await send(hop_to(port), mail("gone@example.test", "a@example.test", "full@example.test"))
    assert [(recipient.rule, recipient.suppress) for recipient in outcome.recipients] == [
        ("rcpt_mailbox_gone", True),
        ("delivered", False),
        ("rcpt_over_quota", False),
    ]
    assert inbox.messages[0].rcpt_tos == ["a@example.test"]


@on_both_loops
async def test_starttls_with_a_verified_certificate(certificates):
    """STARTTLS, then the login and the mail over TLS; the transcript names the protocol and hides the password."""
    inbox = Inbox()
    with aiosmtpd_server(
        inbox,
        tls_context=certificates.server_context("localhost"),
        require_starttls=True,
        authenticator=login_checker(),
        auth_required=True,
    ) as port:
        hop = hop_to(port, host="localhost", tls=TlsMode.STARTTLS, ca_file=certificates.ca_file, **LOGIN)
        outcome = await send(hop)
    assert outcome.severity is Severity.SUCCESS
    assert inbox.messages[0].content == MESSAGE
    phases = [step.phase for step in outcome.steps]
    assert phases[phases.index(Phase.STARTTLS) :][:4] == [Phase.STARTTLS, Phase.TLS, Phase.EHLO, Phase.AUTH]
    assert next(step.sent for step in outcome.steps if step.phase is Phase.AUTH) == "AUTH PLAIN …"


@on_both_loops
async def test_implicit_tls(certificates):
    """TLS from the first byte, reused for a second message."""
    inbox = Inbox()
    with aiosmtpd_server(
        inbox,
        implicit_tls=certificates.server_context("localhost"),
        authenticator=login_checker(),
        auth_require_tls=False,
    ) as port:
        hop = hop_to(port, host="localhost", tls=TlsMode.IMPLICIT, ca_file=certificates.ca_file, **LOGIN)
        async with pool_of(hop) as pool:
            first = await pool.send(hop, mail(), OpenFence())
            second = await pool.send(hop, mail(message=MESSAGES["many blocks"]), OpenFence())
    assert [first.certainty, second.certainty] == [Certainty.DELIVERED] * 2
    assert [step.phase for step in first.steps][:3] == [Phase.CONNECT, Phase.TLS, Phase.GREETING]
    assert second.steps[0].phase is Phase.MAIL
    assert [len(message.content) for message in inbox.messages] == [
        len(MESSAGE),
        len(MESSAGES["many blocks"]),
    ]


async def test_an_unverified_certificate_is_taken_only_when_told_to(certificates):
    """`verify=False` is the one way to talk to a server nobody vouches for."""
    inbox = Inbox()
    with aiosmtpd_server(inbox, tls_context=certificates.server_context("elsewhere.test")) as port:
        outcome = await send(hop_to(port, host="localhost", tls=TlsMode.STARTTLS, verify=False))
    assert outcome.severity is Severity.SUCCESS


@pytest.mark.parametrize("excluded", ["LOGIN", "PLAIN"])
async def test_auth_plain_and_auth_login(excluded):
    """Either mechanism logs in; in clear only because this is loopback and TLS was chosen to be off."""
    inbox = Inbox()
    with aiosmtpd_server(
        inbox, authenticator=login_checker(), auth_require_tls=False, auth_exclude_mechanism=[excluded]
    ) as port:
        outcome = await send(hop_to(port, **LOGIN))
    assert outcome.severity is Severity.SUCCESS
    assert inbox.messages[0].logged_in
    assert PASSWORD not in repr(outcome)


async def test_a_wrong_password_is_535():
    """The credential is refused, the mail is not: it waits."""
    inbox = Inbox()
    with aiosmtpd_server(inbox, authenticator=login_checker(), auth_require_tls=False) as port:
        outcome = await send(hop_to(port, username=USERNAME, password="wrong"))
    assert (outcome.code, outcome.scope, outcome.severity) == (535, Scope.CREDENTIAL, Severity.TRANSIENT)
    assert inbox.messages == []


# -- Postfix ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postfix(certificates):
    """One Postfix for the whole module."""
    with postfix_server(certificates) as server:
        yield server


def postfix_hop(postfix, certificates, **changes):
    """Postfix as a next hop with STARTTLS and the right login."""
    options = {"host": "localhost", "tls": TlsMode.STARTTLS, "ca_file": certificates.ca_file} | LOGIN
    return hop_to(postfix.port, **(options | changes))


def body_of(stored):
    """What follows the header."""
    return stored.split(b"\n\n", 1)[1]


@pytest.mark.postfix
@pytest.mark.parametrize("name", ["dots", "only dots", "long lines"])
@on_both_loops
async def test_postfix_takes_the_mail_over_starttls_and_sasl(postfix, certificates, name):
    """A real next hop, which refuses bare line ends, stores the message as it was given."""
    outcome = await send(postfix_hop(postfix, certificates), mail(message=MESSAGES[name]))
    assert (outcome.certainty, outcome.code) == (Certainty.DELIVERED, 250)
    assert "queued as" in outcome.text
    stored = await asyncio.to_thread(postfix.wait_for_message)
    assert body_of(stored) == body_of(MESSAGES[name].replace(b"\r\n", b"\n"))
    assert b"with ESMTPSA" in stored


@pytest.mark.postfix
async def test_postfix_reuses_the_session_after_refusals(postfix, certificates):
    """Unknown recipients, relaying and size are refused by Postfix itself; the same connection then takes a mail."""
    hop = postfix_hop(postfix, certificates, max_connections=1)
    async with pool_of(hop) as pool:
        unknown = await pool.send(hop, mail("nobody@example.test"), OpenFence())
        mixed = await pool.send(hop, mail("nobody@example.test", "to@example.test"), OpenFence())
        large = await pool.send(hop, mail(message=b"a: b\r\n\r\n" + b"x\r\n" * 100_000), OpenFence())
        taken = await pool.send(hop, mail("other@example.test"), OpenFence())
    assert (unknown.rule, unknown.recipients[0].suppress) == ("rcpt_mailbox_gone", True)
    assert "…@…" in unknown.text
    assert [recipient.severity for recipient in mixed.recipients] == [Severity.PERMANENT, Severity.SUCCESS]
    assert (large.rule, large.enhanced) == ("too_large", "5.3.4")
    assert taken.certainty is Certainty.DELIVERED
    assert [mixed.steps[0].phase, taken.steps[0].phase] == [Phase.MAIL, Phase.MAIL]
    for _ in range(2):
        await asyncio.to_thread(postfix.wait_for_message)


@pytest.mark.postfix
async def test_postfix_refuses_a_wrong_login(postfix, certificates):
    """Postfix's own 535 is a matter of the credential."""
    outcome = await send(postfix_hop(postfix, certificates, password="wrong"))
    assert (outcome.code, outcome.rule, outcome.scope) == (535, "login_refused", Scope.CREDENTIAL)


# -- smtp-sink -------------------------------------------------------------------------------------------------------


@pytest.mark.postfix
@on_both_loops
async def test_connections_to_smtp_sink_are_reused():
    """200 messages over 2 places need 4 connections: each is closed after 100 uses, none is opened without need."""
    with smtp_sink() as port:
        hop = hop_to(port, max_connections=2)
        async with pool_of(hop) as pool:

            async def send_many(count):
                return [await pool.send(hop, mail(), OpenFence()) for _ in range(count)]

            outcomes = [*itertools.chain(*await asyncio.gather(*(send_many(50) for _ in range(4))))]
    assert all(outcome.certainty is Certainty.DELIVERED for outcome in outcomes)
    assert 2 <= sum(outcome.steps[0].phase is Phase.CONNECT for outcome in outcomes) <= 4


@pytest.mark.postfix
@pytest.mark.parametrize(
    ("option", "phase", "severity"),
    [
        ("-q MAIL", Phase.MAIL, Severity.TRANSIENT),
        ("-q RCPT", Phase.RCPT, Severity.TRANSIENT),
        ("-q DATA", Phase.DATA, Severity.TRANSIENT),
        ("-q .", Phase.DOT, Severity.UNKNOWN),
        ("-r RCPT", Phase.RCPT, Severity.TRANSIENT),
        ("-f RCPT", Phase.RCPT, Severity.PERMANENT),
        ("-f .", Phase.DOT, Severity.PERMANENT),
        ("-r .", Phase.DOT, Severity.TRANSIENT),
    ],
)
async def test_faults_of_smtp_sink(option, phase, severity):
    """Postfix's sink hangs up (`-q`) or refuses (`-r`, `-f`): phase and severity are as seen."""
    with smtp_sink(*option.split()) as port:
        outcome = await send(hop_to(port))
    assert (outcome.phase, outcome.severity) == (phase, severity)
