"""The dialog without I/O: what is said next for each reply."""

import base64

import pytest

from mailkeep.core.delivery import AttemptStatus
from mailkeep.core.outcome import Phase, Scope, Severity
from mailkeep.smtp.capabilities import Capabilities
from mailkeep.smtp.classify import FailureKind
from mailkeep.smtp.dialog import START_TLS, opening, transaction
from mailkeep.smtp.ending import End
from mailkeep.smtp.envelope import Envelope
from mailkeep.smtp.login import Login
from mailkeep.smtp.next_hop import AuthMechanism, HopAddress, NextHop, TlsMode
from mailkeep.smtp.reply import ReplyParser

BARE = "250 hi"
FULL = "250-hi\r\n250-PIPELINING\r\n250 SIZE"
WITH_TLS = "250-hi\r\n250 STARTTLS"
WITH_LOGIN = "250-hi\r\n250 AUTH PLAIN LOGIN"
PIPELINING = Capabilities(pipelining=True)


def replies(*texts):
    """Parse each text as a reply."""
    return ReplyParser().feed("".join(f"{text}\r\n" for text in texts).encode())


def play(talk, *answers):
    """Answer what `talk` says, one text (or tuple of texts) a turn; return what it said and its result."""
    said = []
    try:
        step = next(talk)
        for answer in answers:
            said.append(step if step == START_TLS else b"".join(ask.line for ask in step).decode())
            texts = answer if isinstance(answer, tuple) else (answer,)
            step = talk.send([] if step == START_TLS else replies(*texts))
    except StopIteration as done:
        return said, done.value
    raise AssertionError(f"it goes on: {step}")


def hop(tls=TlsMode.NONE, **options):
    """A next hop with what the opening looks at."""
    return NextHop("main", (HopAddress("mail.test", 25),), tls=tls, helo_name="client.test", **options)


def login_at(hop):
    """The login of `hop`, with a token where a command prints one."""
    secret = "a-token" if hop.token_command else hop.password
    return Login(hop.username, secret, "mail.test", 25) if hop.username else None


def open_with(hop, *answers, loopback=True):
    """Play an opening."""
    return play(opening(hop, login_at(hop), peer_is_loopback=loopback), *answers)


def envelope(*recipients):
    """An envelope of six bytes for `recipients`."""
    return Envelope("f@x.test", tuple(enumerate(recipients or ("t@y.test",))), b"a: b\r\n")


LOGIN = {"username": "ann", "password": "pass"}
PLAIN = f"AUTH PLAIN {base64.b64encode(bytes([0]) + b'ann' + bytes([0]) + b'pass').decode()}\r\n"


def test_the_plain_opening():
    """Greeting, EHLO, and what it offers."""
    said, offered = open_with(hop(), "220 hi", FULL)
    assert said == ["", "EHLO client.test\r\n"]
    assert offered == Capabilities(pipelining=True, size=True)


def test_helo_after_a_refused_ehlo():
    """Only a 5yz says "I know no EHLO"."""
    said, offered = open_with(hop(), "220 hi", "502 what?", "250 hi")
    assert said[-1] == "HELO client.test\r\n"
    assert offered == Capabilities()
    assert isinstance(open_with(hop(), "220 hi", "451 later")[1], End)
    assert isinstance(open_with(hop(), "220 hi", "502 what?", "502 what?")[1], End)


def test_starttls_then_ehlo_again():
    """After the handshake the first capabilities are gone."""
    said, offered = open_with(hop(TlsMode.STARTTLS), "220 hi", WITH_TLS, "220 go", "", FULL)
    assert said == ["", "EHLO client.test\r\n", "STARTTLS\r\n", START_TLS, "EHLO client.test\r\n"]
    assert offered == Capabilities(pipelining=True, size=True)


def test_implicit_tls_comes_first_and_only_once():
    """The handshake precedes the greeting; STARTTLS, even if offered, is not said."""
    said, offered = open_with(hop(TlsMode.IMPLICIT), "", "220 hi", WITH_TLS)
    assert said == [START_TLS, "", "EHLO client.test\r\n"]
    assert offered.starttls


def test_tls_none_never_says_starttls():
    """Chosen to be off, it stays off."""
    said, offered = open_with(hop(), "220 hi", WITH_TLS)
    assert "STARTTLS\r\n" not in said
    assert offered.starttls


@pytest.mark.parametrize(
    ("ehlo", "answers", "kind_or_code"),
    [
        (BARE, (), FailureKind.STARTTLS_NOT_OFFERED),
        (WITH_TLS, ("454 not now",), 454),
        (WITH_TLS, ("502 what?",), 502),
        (WITH_TLS, ("334 hm",), 334),
    ],
)
def test_a_required_starttls_that_fails_ends_it(ehlo, answers, kind_or_code):
    """Nothing goes on in clear."""
    _, end = open_with(hop(TlsMode.STARTTLS), "220 hi", ehlo, *answers)
    assert end.phase is Phase.STARTTLS
    assert kind_or_code in (end.kind, end.code)
    assert (end.verdict.severity, end.verdict.scope) == (Severity.TRANSIENT, Scope.NEXT_HOP)


def test_opportunistic_goes_on_in_clear_after_a_refusal_only():
    """A refusal is an answer; a 421 or an unexpected reply is not."""
    assert isinstance(open_with(hop(TlsMode.OPPORTUNISTIC), "220 hi", BARE)[1], Capabilities)
    assert isinstance(open_with(hop(TlsMode.OPPORTUNISTIC), "220 hi", WITH_TLS, "454 no")[1], Capabilities)
    assert open_with(hop(TlsMode.OPPORTUNISTIC), "220 hi", WITH_TLS, "421 bye")[1].code == 421
    assert open_with(hop(TlsMode.OPPORTUNISTIC), "220 hi", WITH_TLS, "334 hm")[1].code == 334


@pytest.mark.parametrize("greeting", ["421 busy", "554 no", "521 never", "451 later"])
def test_a_refusing_greeting_is_an_outage(greeting):
    """Even a 5yz greeting is about the next hop, not about any message."""
    said, end = open_with(hop(), greeting)
    assert said == [""]
    assert (end.phase, end.verdict.severity, end.verdict.scope) == (
        Phase.GREETING,
        Severity.TRANSIENT,
        Scope.NEXT_HOP,
    )


@pytest.mark.parametrize("greeting", ["354 hm", "100 hm"])
def test_a_greeting_that_greets_nobody_is_an_outage(greeting):
    """1yz and 3yz are no greeting."""
    assert open_with(hop(), greeting)[1].verdict.rule == "unexpected_reply"


def test_auth_plain_is_preferred():
    """One exchange, with the secret masked in what is shown."""
    made = hop(**LOGIN)
    talk = opening(made, login_at(made), peer_is_loopback=True)
    next(talk)
    talk.send(replies("220 hi"))
    (ask,) = talk.send(replies(WITH_LOGIN))
    assert (ask.line.decode(), ask.shown, ask.phase) == (PLAIN, "AUTH PLAIN …", Phase.AUTH)
    with pytest.raises(StopIteration) as done:
        talk.send(replies("235 in"))
    assert isinstance(done.value.value, Capabilities)


def test_auth_login_in_three_steps():
    """Where PLAIN is missing; neither name nor password is shown."""
    login_only = "250-hi\r\n250 AUTH LOGIN"
    said, offered = open_with(
        hop(**LOGIN), "220 hi", login_only, "334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", "235 in"
    )
    assert said[2:] == ["AUTH LOGIN\r\n", "YW5u\r\n", "cGFzcw==\r\n"]
    assert isinstance(offered, Capabilities)


@pytest.mark.parametrize(
    ("answers", "rule"),
    [
        (("535 5.7.8 no",), "login_refused"),
        (("235 already",), "broken_protocol"),
        (("334 a", "235 already"), "broken_protocol"),
        (("334 a", "334 b", "334 c"), "unexpected_reply"),
        (("334 a", "535 no"), "login_refused"),
    ],
)
def test_auth_login_that_goes_wrong_ends(answers, rule):
    """No prompt is answered that was not expected, and a 235 before the password is no success."""
    _, end = open_with(hop(**LOGIN), "220 hi", "250-hi\r\n250 AUTH LOGIN", *answers)
    assert (end.phase, end.verdict.rule) == (Phase.AUTH, rule)
    assert end.verdict.severity is Severity.TRANSIENT


def test_a_login_in_clear_needs_loopback_and_an_explicit_choice():
    """Anything else ends before AUTH."""
    assert isinstance(open_with(hop(**LOGIN), "220 hi", WITH_LOGIN, "235 in")[1], Capabilities)
    said, end = open_with(hop(**LOGIN), "220 hi", WITH_LOGIN, loopback=False)
    assert (end.kind, len(said)) == (FailureKind.AUTH_IN_CLEAR, 2)
    said, end = open_with(hop(TlsMode.OPPORTUNISTIC, **LOGIN), "220 hi", WITH_LOGIN)
    assert (end.kind, len(said)) == (FailureKind.AUTH_IN_CLEAR, 2)


def test_no_usable_mechanism_ends_it():
    """Mail without the login that was configured is not an option."""
    assert (
        open_with(hop(**LOGIN), "220 hi", "250-hi\r\n250 AUTH SCRAM-SHA-1 XOAUTH2")[1].kind
        is FailureKind.AUTH_NOT_OFFERED
    )


TOKEN = {"username": "a=b,c", "token_command": ("print-token",)}


def b64(text):
    """Encode as it goes over the wire."""
    return base64.b64encode(text.encode()).decode()


def offering(*mechanisms):
    """An answer to EHLO."""
    return f"250-hi\r\n250 AUTH {' '.join(mechanisms)}"


def test_cram_md5_answers_the_challenge():
    """The example of RFC 2195 section 2; the password itself is not said."""
    made = hop(username="tim", password="tanstaaftanstaaf")
    challenge = "PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+"
    said, offered = open_with(made, "220 hi", offering("CRAM-MD5"), f"334 {challenge}", "235 in")
    assert said[2:] == [
        "AUTH CRAM-MD5\r\n",
        "dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw\r\n",
    ]
    assert isinstance(offered, Capabilities)


def test_a_challenge_that_is_none_ends_it():
    """Nothing is said to a server that does not speak CRAM-MD5."""
    _, end = open_with(hop(**LOGIN), "220 hi", offering("CRAM-MD5"), "334 <clear@text>")
    assert (end.phase, end.kind) == (Phase.AUTH, FailureKind.PROTOCOL)


@pytest.mark.parametrize(
    ("options", "offered", "chosen"),
    [
        (LOGIN, "CRAM-MD5 LOGIN PLAIN", "PLAIN"),
        (LOGIN, "CRAM-MD5 LOGIN", "LOGIN"),
        (LOGIN, "XOAUTH2 CRAM-MD5", "CRAM-MD5"),
        (LOGIN | {"auth": (AuthMechanism.CRAM_MD5, AuthMechanism.PLAIN)}, "PLAIN CRAM-MD5", "CRAM-MD5"),
        (TOKEN, "PLAIN XOAUTH2 OAUTHBEARER", "OAUTHBEARER"),
        (TOKEN, "PLAIN XOAUTH2", "XOAUTH2"),
        (TOKEN | {"auth": (AuthMechanism.XOAUTH2,)}, "OAUTHBEARER XOAUTH2", "XOAUTH2"),
    ],
)
def test_the_first_way_that_is_offered_is_taken(options, offered, chosen):
    """In the usual order, or in that of `auth`."""
    talk = opening(hop(**options), login_at(hop(**options)), peer_is_loopback=True)
    next(talk)
    talk.send(replies("220 hi"))
    (ask,) = talk.send(replies(offering(offered)))
    assert ask.line.split()[1].decode() == chosen
    assert ask.shown in {f"AUTH {chosen}", f"AUTH {chosen} …"}


@pytest.mark.parametrize(
    ("options", "offered"),
    [
        (LOGIN, "XOAUTH2 OAUTHBEARER SCRAM-SHA-256"),
        (LOGIN | {"auth": (AuthMechanism.LOGIN,)}, "PLAIN CRAM-MD5"),
        (TOKEN, "PLAIN LOGIN CRAM-MD5"),
    ],
)
def test_a_way_that_was_not_chosen_is_not_taken(options, offered):
    """A token is never said as a password, nor the other way round."""
    said, end = open_with(hop(**options), "220 hi", offering(offered))
    assert (end.kind, len(said)) == (FailureKind.AUTH_NOT_OFFERED, 2)


@pytest.mark.parametrize(
    ("mechanism", "said_first", "said_then"),
    [
        ("XOAUTH2", "user=a=b,c\1auth=Bearer a-token\1\1", ""),
        ("OAUTHBEARER", "n,a=a=3Db=2Cc,\1host=mail.test\1port=25\1auth=Bearer a-token\1\1", "\1"),
    ],
)
def test_a_token_is_shown_and_its_refusal_heard_out(mechanism, said_first, said_then):
    """RFC 7628 section 3.2.3: the challenge that explains a refusal is answered, and then the refusal comes."""
    opened = open_with(hop(**TOKEN), "220 hi", offering(mechanism), "235 in")
    assert opened[0][2:] == [f"AUTH {mechanism} {b64(said_first)}\r\n"]
    assert isinstance(opened[1], Capabilities)
    why = b64('{"status":"401"}')
    said, end = open_with(hop(**TOKEN), "220 hi", offering(mechanism), f"334 {why}", "535 5.7.8 no")
    assert said[3:] == [f"{b64(said_then)}\r\n"]
    assert (end.code, end.verdict.rule) == (535, "login_refused")
    _, end = open_with(hop(**TOKEN), "220 hi", offering(mechanism), f"334 {why}", "235 after all")
    assert end.kind is FailureKind.PROTOCOL


@pytest.mark.parametrize(
    ("tls", "options", "loopback", "may"),
    [
        (TlsMode.STARTTLS, {}, False, True),
        (TlsMode.STARTTLS, {"verify": False}, False, False),
        (TlsMode.STARTTLS, {"verify": False}, True, True),
        (TlsMode.STARTTLS, {"verify": False, "fingerprints": ("ab" * 32,)}, False, True),
        (TlsMode.STARTTLS, {"verify": False, "auth_without_tls": True}, False, True),
        (TlsMode.NONE, {}, False, False),
        (TlsMode.NONE, {}, True, True),
        (TlsMode.NONE, {"auth_without_tls": True}, False, True),
    ],
)
def test_a_login_goes_to_who_proved_who_it_is(tls, options, loopback, may):
    """Encryption alone is not enough, unless the route says that nothing is needed."""
    with_tls = [WITH_TLS, "220 go", ""] if tls is TlsMode.STARTTLS else []
    last = ["235 in"] if may else []
    _, end = open_with(
        hop(tls, **LOGIN, **options), "220 hi", *with_tls, WITH_LOGIN, *last, loopback=loopback
    )
    assert isinstance(end, Capabilities) if may else end.kind is FailureKind.AUTH_IN_CLEAR


def test_where_others_may_listen_the_password_stays_here_if_it_can():
    """In clear by the operator's word: CRAM-MD5 is the least bad."""
    made = hop(**LOGIN, auth_without_tls=True)
    said, _ = open_with(made, "220 hi", offering("PLAIN CRAM-MD5"), "334 PDFAeD4=", "235 in", loopback=False)
    assert said[2] == "AUTH CRAM-MD5\r\n"


# -- one transaction -------------------------------------------------------------------------------------------------


def test_a_pipelined_transaction_is_one_group():
    """MAIL, RCPT and DATA in one write; 354 with a recipient asks for the body."""
    said, end = play(
        transaction(envelope("a@y.test", "b@y.test"), PIPELINING), ("250 a", "250 b", "550 c", "354 go")
    )
    assert said == ["MAIL FROM:<f@x.test>\r\nRCPT TO:<a@y.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\n"]
    assert end is None


def test_without_pipelining_each_waits_for_the_other():
    """Four writes for two recipients; DATA only because one was taken."""
    said, end = play(
        transaction(envelope("a@y.test", "b@y.test"), Capabilities()), "250 a", "550 b", "252 c", "354 go"
    )
    assert [line.split(" ")[0].strip() for line in said] == ["MAIL", "RCPT", "RCPT", "DATA"]
    assert end is None


def test_no_data_without_a_recipient():
    """One at a time, DATA is not said when all were refused."""
    said, end = play(transaction(envelope("a@y.test", "b@y.test"), Capabilities()), "250 a", "550 b", "451 c")
    assert len(said) == 3
    assert (end.phase, end.clean) == (Phase.RCPT, True)


def test_a_lone_dot_ends_an_unwanted_354():
    """RFC 2920 section 3.1; its answer is not read as a delivery."""
    said, end = play(transaction(envelope(), PIPELINING), ("250 a", "550 b", "354 go"), "250 taken")
    assert said[1] == ".\r\n"
    assert (end.phase, end.clean, end.status) == (Phase.RCPT, True, AttemptStatus.PROVIDER_REJECTED)
    _, end = play(transaction(envelope(), PIPELINING), ("250 a", "550 b", "354 go"), "354 hm")
    assert not end.clean


def test_mail_refused_but_354_gets_the_lone_dot_only_if_no_recipient_was_taken():
    """With a recipient taken, a dot would deliver an empty message: the connection goes."""
    said, end = play(transaction(envelope(), PIPELINING), ("451 a", "503 b", "354 go"), "554 no")
    assert (said[1], end.phase, end.clean) == (".\r\n", Phase.MAIL, True)
    said, end = play(transaction(envelope(), PIPELINING), ("451 a", "250 b", "354 go"))
    assert (len(said), end.phase, end.clean) == (1, Phase.MAIL, False)


@pytest.mark.parametrize(
    ("texts", "phase", "rule"),
    [
        (("421 bye",), Phase.MAIL, "mail_sender_deferred"),
        (("250 a", "421 bye"), Phase.RCPT, "rcpt_deferred"),
        (("250 a", "250 b", "421 bye"), Phase.DATA, "message_closing"),
        (("354 a", "250 b", "354 go"), Phase.MAIL, "broken_protocol"),
        (("250 a", "354 b", "354 go"), Phase.RCPT, "broken_protocol"),
        (("250 a", "150 b", "354 go"), Phase.RCPT, "broken_protocol"),
        (("250 a", "250 b", "250 c"), Phase.DATA, "broken_protocol"),
        (("250 a", "250 b", "154 c"), Phase.DATA, "broken_protocol"),
    ],
)
def test_what_ends_a_transaction_for_good_leaves_no_clean_connection(texts, phase, rule):
    """421 and replies of an impossible class: nothing more is said, and RSET would not help."""
    said, end = play(transaction(envelope(), PIPELINING), texts)
    assert len(said) == 1
    assert (end.phase, end.verdict.rule, end.clean) == (phase, rule, False)


def test_data_refused_after_recipients_is_about_the_message():
    """And the connection stays usable."""
    _, end = play(transaction(envelope(), PIPELINING), ("250 a", "250 b", "451 4.3.0 later"))
    assert (end.phase, end.code, end.clean, end.verdict.scope) == (Phase.DATA, 451, True, Scope.MESSAGE)


@pytest.mark.parametrize(
    ("offered", "message", "options", "kind", "enhanced"),
    [
        (Capabilities(size=True, max_size_bytes=5), b"a: b\r\n", {}, FailureKind.TOO_LARGE, "5.3.4"),
        (Capabilities(), b"a: b\r\n", {"smtputf8": True}, FailureKind.NEEDS_SMTPUTF8, "5.6.7"),
        (Capabilities(), b"\xff", {}, FailureKind.NEEDS_8BITMIME, "5.6.3"),
    ],
)
def test_what_can_not_go_is_not_begun(offered, message, options, kind, enhanced):
    """The announcement is the answer: permanent, nothing said, the connection as good as before."""
    said, end = play(transaction(Envelope("", ((0, "a@y.test"),), message, **options), offered))
    assert said == []
    assert (end.kind, end.enhanced, end.clean) == (kind, enhanced, True)
    assert end.verdict.severity is Severity.PERMANENT


def test_a_message_of_exactly_the_limit_goes():
    """SIZE is a limit, not the first size refused."""
    said, _ = play(transaction(envelope(), Capabilities(size=True, max_size_bytes=6)), "421 bye")
    assert said == ["MAIL FROM:<f@x.test> SIZE=6\r\n"]
