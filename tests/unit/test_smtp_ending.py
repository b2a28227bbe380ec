"""From what was heard to the outcome of an attempt."""

import pytest

from mailkeep.core.delivery import AttemptStatus, Certainty
from mailkeep.core.outcome import Phase, Scope, Severity
from mailkeep.smtp.classify import FailureKind
from mailkeep.smtp.ending import Heard, conclude, ended_by_failure, ended_by_reply
from mailkeep.smtp.envelope import Envelope
from mailkeep.smtp.reply import ReplyParser


def reply(text):
    """Parse one reply."""
    (parsed,) = ReplyParser().feed(f"{text}\r\n".encode())
    return parsed


def concluded(end, *rcpt, mail="250 ok"):
    """Conclude an attempt for recipients with ordinals 3, 4, …, answered with `rcpt`."""
    envelope = Envelope("", tuple((number + 3, "a@y.test") for number in range(len(rcpt))), b"")
    heard = [Heard(Phase.MAIL, "MAIL FROM:<…>", reply(mail), 10.0)]
    heard += [Heard(Phase.RCPT, "RCPT TO:<…>", text and reply(text), 10.1) for text in rcpt]
    return conclude(envelope, end, heard, began_s=9.9, ended_s=10.25)


def test_success_for_all():
    """Every recipient has the answer to the dot; ordinals are the delivery's."""
    outcome = concluded(ended_by_reply(Phase.DOT, reply("250 2.0.0 taken")), "250 a", "250 b")
    assert [recipient.ordinal for recipient in outcome.recipients] == [3, 4]
    assert {recipient.text for recipient in outcome.recipients} == {"taken"}
    assert (outcome.severity, outcome.certainty) == (Severity.SUCCESS, Certainty.DELIVERED)
    assert outcome.duration_ms == 350
    assert [step.at_ms for step in outcome.steps] == [100.0, 200.0, 200.0]
    assert outcome.steps[0].reply == "250 ok"


@pytest.mark.parametrize(
    ("end", "rcpt", "severities", "overall"),
    [
        (
            ended_by_reply(Phase.DOT, reply("250 ok")),
            ("250 a", "550 b", "450 c"),
            "success permanent transient",
            "transient",
        ),
        (ended_by_reply(Phase.DOT, reply("250 ok")), ("250 a", "550 b"), "success permanent", "permanent"),
        (ended_by_reply(Phase.DOT, reply("554 no")), ("250 a", "450 b"), "permanent transient", "transient"),
        (
            ended_by_failure(Phase.DOT, FailureKind.TIMEOUT),
            ("250 a", "450 b", "550 c"),
            "unknown transient permanent",
            "unknown",
        ),
        (
            ended_by_failure(Phase.DATA, FailureKind.CLOSED),
            ("250 a", "550 b"),
            "transient permanent",
            "transient",
        ),
        (
            ended_by_failure(Phase.RCPT, FailureKind.CLOSED),
            ("550 a", None),
            "permanent transient",
            "transient",
        ),
    ],
)
def test_the_worst_recipient_speaks_for_all(end, rcpt, severities, overall):
    """Unknown before transient before permanent before success; one open recipient keeps the delivery open."""
    outcome = concluded(end, *rcpt)
    assert [str(recipient.severity) for recipient in outcome.recipients] == severities.split()
    assert outcome.severity == overall
    worst = next(recipient for recipient in outcome.recipients if recipient.severity == overall)
    assert (outcome.code, outcome.text, outcome.rule, outcome.scope) == (
        worst.code,
        worst.text,
        worst.rule,
        worst.scope,
    )


def test_all_settled_at_rcpt_needs_no_end():
    """If the server refused each recipient, what came after does not change that."""
    for end in (
        ended_by_failure(Phase.DATA, FailureKind.CLOSED),
        ended_by_reply(Phase.DATA, reply("554 no valid recipients")),
    ):
        outcome = concluded(end, "550 5.1.1 a", "550 5.1.1 b")
        assert (outcome.status, outcome.phase) == (AttemptStatus.PROVIDER_REJECTED, Phase.RCPT)
        assert all(recipient.suppress for recipient in outcome.recipients)
        assert outcome.certainty is Certainty.NOT_DELIVERED


def test_refused_at_mail_the_answers_to_rcpt_are_noise():
    """Pipelined recipients answered 503, or 550, after a refused MAIL were not judged."""
    outcome = concluded(
        ended_by_reply(Phase.MAIL, reply("451 4.3.0 later")),
        "503 need MAIL",
        "550 5.1.1 b",
        mail="451 4.3.0 later",
    )
    assert {(recipient.severity, recipient.code) for recipient in outcome.recipients} == {
        (Severity.TRANSIENT, 451)
    }


def test_in_a_shifted_stream_no_answer_counts():
    """A recipient must not be suppressed by a reply that may belong to another; after a clean dot, it may."""
    outcome = concluded(ended_by_failure(Phase.DATA, FailureKind.PROTOCOL), "250 a", "550 5.1.1 b")
    assert {recipient.severity for recipient in outcome.recipients} == {Severity.TRANSIENT}
    outcome = concluded(ended_by_failure(Phase.DOT, FailureKind.PROTOCOL), "250 a", "550 5.1.1 b")
    assert [recipient.severity for recipient in outcome.recipients] == [Severity.UNKNOWN, Severity.PERMANENT]


@pytest.mark.parametrize(
    "phase", [Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.AUTH, Phase.MAIL, Phase.RCPT]
)
def test_only_the_dot_ends_in_success(phase):
    """A positive reply that ends anything earlier is a broken protocol, not a delivery."""
    end = ended_by_reply(phase, reply("250 ok"))
    assert (end.kind, end.status) == (FailureKind.PROTOCOL, AttemptStatus.TRANSPORT_FAILED)
    assert concluded(end, "250 a").certainty is Certainty.NOT_DELIVERED


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (FailureKind.TIMEOUT, AttemptStatus.TIMED_OUT),
        (FailureKind.RESET, AttemptStatus.TRANSPORT_FAILED),
        (FailureKind.TOO_LARGE, AttemptStatus.PROVIDER_REJECTED),
        (FailureKind.CLAIM_LOST, AttemptStatus.TRANSPORT_FAILED),
    ],
)
def test_failures_have_a_status_and_say_what_happened(kind, status):
    """The status of an attempt tells a timeout, a broken transport and a refusal apart."""
    outcome = concluded(ended_by_failure(Phase.MAIL, kind), "250 a")
    assert (outcome.status, outcome.scope) == (status, Scope.MESSAGE)
    assert outcome.reason.strip()


def test_a_detail_is_masked():
    """What an exception says may hold anything."""
    end = ended_by_failure(Phase.TLS, FailureKind.TLS, "certificate of ann@example.org " + "x" * 1000)
    assert "…@…" in end.text
    assert "ann" not in end.text


@pytest.mark.parametrize(
    ("end", "stale", "clean"),
    [
        (ended_by_reply(Phase.MAIL, reply("421 bye")), True, False),
        (ended_by_failure(Phase.MAIL, FailureKind.CLOSED), True, False),
        (ended_by_failure(Phase.MAIL, FailureKind.RESET), True, False),
        (ended_by_failure(Phase.MAIL, FailureKind.TIMEOUT), False, False),
        (ended_by_failure(Phase.RCPT, FailureKind.CLOSED), False, False),
        (ended_by_reply(Phase.RCPT, reply("421 bye")), False, False),
        (ended_by_reply(Phase.MAIL, reply("451 later")), False, True),
        (ended_by_reply(Phase.BODY, reply("552 large")), False, False),
        (ended_by_reply(Phase.DOT, reply("554 no")), False, True),
        (ended_by_reply(Phase.DOT, reply("250 ok")), False, True),
        (ended_by_reply(Phase.DOT, reply("354 hm")), False, False),
        (ended_by_failure(Phase.MAIL, FailureKind.TOO_LARGE), False, True),
        (ended_by_failure(Phase.MAIL, FailureKind.CLAIM_LOST), False, True),
        (ended_by_failure(Phase.BODY, FailureKind.CLAIM_LOST), False, False),
    ],
)
def test_what_becomes_of_the_connection(end, stale, clean):
    """Stale: replaced at once if it was a reused one. Clean: RSET makes it fit again; in mid-body nothing does."""
    assert (end.stale, end.clean) == (stale, clean)


SENT = ended_by_reply(Phase.DOT, reply("250 ok"))
DEFERRED = ended_by_reply(Phase.DOT, reply("451 4.3.0 retry in 20 minutes"))
UNKNOWN = ended_by_failure(Phase.DOT, FailureKind.TIMEOUT)
GREYLISTED = "450 4.7.1 greylisted for 60 s"
TOO_MANY = "452 4.5.3 too many recipients"


@pytest.mark.parametrize(
    ("end", "rcpt", "retry", "wait_hint_s"),
    [
        (SENT, ("250 a", "250 b"), "ladder", 0),
        (SENT, ("250 a", "550 5.1.1 b"), "ladder", 0),
        (SENT, ("250 a", GREYLISTED), "soon", 60),
        (SENT, ("250 a", GREYLISTED, "450 c"), "ladder", 60),
        (SENT, ("250 a", "450 retry in 5 minutes", GREYLISTED), "ladder", 300),
        (SENT, ("250 a", TOO_MANY, TOO_MANY), "at_once", 0),
        (SENT, ("250 a", TOO_MANY, GREYLISTED), "at_once", 60),
        (DEFERRED, ("250 a", GREYLISTED), "ladder", 1200),
        (DEFERRED, ("550 5.1.1 a", GREYLISTED), "soon", 60),
        (UNKNOWN, ("250 a", GREYLISTED), "ladder", 60),
        (UNKNOWN, ("250 a",), "ladder", 0),
    ],
)
def test_when_the_open_ones_are_tried_again(end, rcpt, retry, wait_hint_s):
    """The longest wait that was asked for counts; who had no turn takes all along, greylisting only where all are."""
    outcome = concluded(end, *rcpt)
    assert (outcome.retry, outcome.wait_hint_s) == (retry, wait_hint_s)
