"""The rules table: replies as real servers word them, and what they mean here."""

import hashlib
import json
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from mailkeep.core.outcome import MAX_WAIT_HINT_S, Phase, Retry, Scope, Severity
from mailkeep.smtp.classify import (
    MAX_ROW_WAIT_S,
    REPLY_PHASES,
    RULES,
    FailureKind,
    Rules,
    RulesError,
    classify,
    classify_failure,
)
from mailkeep.smtp.reply import ReplyParser

SOURCES = tomllib.loads((Path(__file__).parents[1] / "data/replies.toml").read_text(encoding="utf-8"))[
    "source"
]
REPLIES = [
    (source["name"], phase, rule, text, *(wait or [None]))
    for source in SOURCES
    for phase, rule, text, *wait in source["replies"]
]
"""Source, phase, rule, reply, and the wait that the reply tells in seconds."""
LEAST_REPLIES = 150

MEANING = {
    "going_on": (Severity.SUCCESS, Scope.MESSAGE),
    "data_going_on": (Severity.SUCCESS, Scope.MESSAGE),
    "delivered": (Severity.SUCCESS, Scope.MESSAGE),
    "next_hop_busy": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "next_hop_distrusts_us": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "next_hop_closing": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "next_hop_unwilling": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "starttls_refused": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "login_deferred": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "login_refused": (Severity.TRANSIENT, Scope.CREDENTIAL),
    "login_required": (Severity.TRANSIENT, Scope.CREDENTIAL),
    "login_required_by_text": (Severity.TRANSIENT, Scope.CREDENTIAL),
    "tls_required": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "account_blocked": (Severity.TRANSIENT, Scope.CREDENTIAL),
    "sending_quota_used_up": (Severity.TRANSIENT, Scope.CREDENTIAL),
    "next_hop_throttles": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "out_of_sequence": (Severity.TRANSIENT, Scope.MESSAGE),
    "unexpected_reply": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "unexpected_reply_to_data": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "unexpected_reply_in_body": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "reputation": (Severity.TRANSIENT, Scope.REPUTATION),
    "reputation_by_enhanced_code": (Severity.TRANSIENT, Scope.REPUTATION),
    "message_reputation": (Severity.TRANSIENT, Scope.REPUTATION),
    "too_fast": (Severity.TRANSIENT, Scope.REPUTATION),
    "mail_sender_deferred": (Severity.TRANSIENT, Scope.SENDER),
    "mail_sender_refused": (Severity.PERMANENT, Scope.SENDER),
    "mail_too_large": (Severity.PERMANENT, Scope.MESSAGE),
    "mail_too_large_by_enhanced_code": (Severity.PERMANENT, Scope.MESSAGE),
    "mail_needs_smtputf8": (Severity.PERMANENT, Scope.MESSAGE),
    "rcpt_greylisted": (Severity.TRANSIENT, Scope.RECIPIENT),
    "rcpt_receives_too_fast": (Severity.TRANSIENT, Scope.RECIPIENT),
    "message_greylisted": (Severity.TRANSIENT, Scope.MESSAGE),
    "rcpt_too_many": (Severity.TRANSIENT, Scope.RECIPIENT),
    "rcpt_too_many_by_text": (Severity.TRANSIENT, Scope.RECIPIENT),
    "rcpt_over_quota": (Severity.TRANSIENT, Scope.RECIPIENT),
    "rcpt_over_quota_by_text": (Severity.TRANSIENT, Scope.RECIPIENT),
    "rcpt_sender_deferred": (Severity.TRANSIENT, Scope.SENDER),
    "rcpt_sender_deferred_by_text": (Severity.TRANSIENT, Scope.SENDER),
    "rcpt_deferred": (Severity.TRANSIENT, Scope.RECIPIENT),
    "rcpt_provider_suppressed": (Severity.PERMANENT, Scope.REPUTATION),
    "rcpt_sender_refused": (Severity.PERMANENT, Scope.SENDER),
    "rcpt_sender_refused_by_text": (Severity.PERMANENT, Scope.SENDER),
    "rcpt_mailbox_gone": (Severity.PERMANENT, Scope.RECIPIENT),
    "rcpt_mailbox_gone_by_text": (Severity.PERMANENT, Scope.RECIPIENT),
    "rcpt_mailbox_moved": (Severity.PERMANENT, Scope.RECIPIENT),
    "rcpt_over_quota_for_good": (Severity.PERMANENT, Scope.RECIPIENT),
    "rcpt_over_quota_for_good_by_text": (Severity.PERMANENT, Scope.RECIPIENT),
    "rcpt_policy_by_text": (Severity.PERMANENT, Scope.RECIPIENT),
    "rcpt_too_large": (Severity.PERMANENT, Scope.MESSAGE),
    "rcpt_relay_denied": (Severity.PERMANENT, Scope.RECIPIENT),
    "rcpt_policy": (Severity.PERMANENT, Scope.RECIPIENT),
    "rcpt_refused": (Severity.PERMANENT, Scope.RECIPIENT),
    "message_closing": (Severity.TRANSIENT, Scope.MESSAGE),
    "message_deferred": (Severity.TRANSIENT, Scope.MESSAGE),
    "message_sender_refused": (Severity.PERMANENT, Scope.SENDER),
    "message_over_quota": (Severity.PERMANENT, Scope.MESSAGE),
    "message_too_large": (Severity.PERMANENT, Scope.MESSAGE),
    "message_too_large_by_enhanced_code": (Severity.PERMANENT, Scope.MESSAGE),
    "message_policy": (Severity.PERMANENT, Scope.MESSAGE),
    "message_refused": (Severity.PERMANENT, Scope.MESSAGE),
    "reply_unreadable": (Severity.UNKNOWN, Scope.MESSAGE),
}
SUPPRESSING = {
    "rcpt_mailbox_gone",
    "rcpt_mailbox_gone_by_text",
    "rcpt_mailbox_moved",
    "rcpt_provider_suppressed",
}

FAILURES = [
    ("connect", "dns", "no_connection", Severity.TRANSIENT, Scope.NEXT_HOP),
    ("connect", "refused", "no_connection", Severity.TRANSIENT, Scope.NEXT_HOP),
    ("connect", "timeout", "no_connection", Severity.TRANSIENT, Scope.NEXT_HOP),
    ("connect", "unreachable", "no_connection", Severity.TRANSIENT, Scope.NEXT_HOP),
    ("greeting", "timeout", "lost_before_mail", Severity.TRANSIENT, Scope.NEXT_HOP),
    ("ehlo", "closed", "lost_before_mail", Severity.TRANSIENT, Scope.NEXT_HOP),
    ("starttls", "starttls_not_offered", "starttls_not_offered", Severity.TRANSIENT, Scope.NEXT_HOP),
    ("tls", "tls", "tls_failed", Severity.TRANSIENT, Scope.NEXT_HOP),
    ("tls", "timeout", "lost_before_mail", Severity.TRANSIENT, Scope.NEXT_HOP),
    ("auth", "reset", "lost_before_mail", Severity.TRANSIENT, Scope.NEXT_HOP),
    ("auth", "auth_not_offered", "login_not_offered", Severity.TRANSIENT, Scope.CREDENTIAL),
    ("auth", "auth_in_clear", "login_in_clear", Severity.TRANSIENT, Scope.CREDENTIAL),
    ("mail", "timeout", "lost_before_dot", Severity.TRANSIENT, Scope.MESSAGE),
    ("rcpt", "closed", "lost_before_dot", Severity.TRANSIENT, Scope.MESSAGE),
    ("data", "reset", "lost_before_dot", Severity.TRANSIENT, Scope.MESSAGE),
    ("body", "timeout", "lost_before_dot", Severity.TRANSIENT, Scope.MESSAGE),
    ("body", "protocol", "broken_protocol", Severity.TRANSIENT, Scope.NEXT_HOP),
    ("rcpt", "protocol", "broken_protocol", Severity.TRANSIENT, Scope.NEXT_HOP),
    ("mail", "too_large", "too_large", Severity.PERMANENT, Scope.MESSAGE),
    ("mail", "needs_smtputf8", "smtputf8_not_offered", Severity.PERMANENT, Scope.MESSAGE),
    ("mail", "needs_8bitmime", "8bitmime_not_offered", Severity.PERMANENT, Scope.MESSAGE),
    ("mail", "unsafe", "unsafe_envelope", Severity.PERMANENT, Scope.MESSAGE),
    ("mail", "claim_lost", "claim_lost", Severity.TRANSIENT, Scope.MESSAGE),
    ("body", "claim_lost", "claim_lost", Severity.TRANSIENT, Scope.MESSAGE),
    *(
        ("dot", kind, "reply_lost", Severity.UNKNOWN, Scope.MESSAGE)
        for kind in ("timeout", "closed", "reset", "tls", "protocol")
    ),
]


RETRIES = {
    "rcpt_greylisted": Retry.SOON,
    "message_greylisted": Retry.SOON,
    "rcpt_too_many": Retry.AT_ONCE,
    "rcpt_too_many_by_text": Retry.AT_ONCE,
}
WAITS_S = {
    "reputation": 300,
    "reputation_by_enhanced_code": 300,
    "message_reputation": 300,
    "too_fast": 300,
    "rcpt_receives_too_fast": 300,
    "rcpt_over_quota": 600,
    "rcpt_over_quota_by_text": 600,
}
VERSION = (2, "29819920fcb79673")


def reply_of(text):
    """Parse one reply; its lines are separated by LF."""
    (reply,) = ReplyParser().feed("".join(f"{line}\r\n" for line in text.split("\n")).encode())
    return reply


@pytest.mark.parametrize(("source", "phase", "rule", "text", "told_s"), REPLIES)
def test_replies_mean_what_they_mean(source, phase, rule, text, told_s):
    """Each real-world reply finds its row, and the row its severity, scope, suppression and wait."""
    verdict = classify(Phase(phase), reply_of(text))
    assert verdict.rule == rule
    assert (verdict.severity, verdict.scope) == MEANING[rule]
    assert verdict.suppress is (rule in SUPPRESSING)
    assert verdict.retry is RETRIES.get(rule, Retry.LADDER)
    assert verdict.wait_hint_s == (told_s or WAITS_S.get(rule, 0))


def test_the_replies_are_many_and_each_has_a_source():
    """A table of examples is worth what stands behind it; no reply is listed twice by one source."""
    assert len({(phase, text) for _, phase, _, text, _ in REPLIES}) >= LEAST_REPLIES
    assert all(source["name"] and source["document"] for source in SOURCES)
    assert len({reply[:4] for reply in REPLIES}) == len(REPLIES)


def test_the_version_changes_with_the_rules():
    """Whoever changes a row raises `version`, so that the same name under another version may mean something else."""
    rules = tomllib.loads(resources.files("mailkeep.smtp").joinpath("rules.toml").read_text(encoding="utf-8"))
    del rules["version"]
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode())
    assert (RULES.version, digest.hexdigest()[:16]) == VERSION, (
        "raise version in rules.toml, then note it here"
    )


@pytest.mark.parametrize(("phase", "kind", "rule", "severity", "scope"), FAILURES)
def test_failures_mean_what_they_mean(phase, kind, rule, severity, scope):
    """A missing reply has a meaning by phase: outage before MAIL, a rung after it, unknown after the dot."""
    verdict = classify_failure(Phase(phase), FailureKind(kind))
    assert (verdict.rule, verdict.severity, verdict.scope) == (rule, severity, scope)
    assert not verdict.suppress


def test_no_row_is_without_an_example():
    """A row that no reply and no failure above reaches is either wrong or not understood."""
    assert {rule for _, _, rule, _, _ in REPLIES} | {rule for _, _, rule, *_ in FAILURES} == {
        rule.name for rule in RULES.rows
    }


@pytest.mark.parametrize("phase", REPLY_PHASES)
@pytest.mark.parametrize("code", [*range(100, 600, 50), 199, 299, 399, 421, 499, 550, 599])
def test_every_code_of_every_phase_has_an_answer(phase, code):
    """Success needs the right first digit; only DOT can end in unknown; nothing but RCPT suppresses."""
    verdict = classify(phase, reply_of(f"{code} whatever"))
    expected = {Phase.DATA: 3, Phase.BODY: 0}.get(phase, 2)
    assert (verdict.severity is Severity.SUCCESS) == (code // 100 == expected)
    assert verdict.severity is not Severity.UNKNOWN or phase is Phase.DOT
    assert not verdict.suppress or phase is Phase.RCPT


def test_a_later_phase_never_blames_the_recipient_for_the_message():
    """Answers to DATA, the body and the dot are for all recipients at once, so they suppress none."""
    for phase in (Phase.DATA, Phase.BODY, Phase.DOT):
        assert not classify(phase, reply_of("550 5.1.1 no such user")).suppress


TOLD = "in (?P<clock>[0-9:]{5})|in (?P<count>[0-9]+) (?P<unit>[a-z]+)"


def table(*rows, told=TOLD):
    """Make a rules file that is whole but for `rows`, which come first."""
    phases = ", ".join(f'"{phase}"' for phase in REPLY_PHASES)
    rest = f"""
    [[rule]]
    name = "rest"
    phases = [{phases}]
    replies = ["1yz", "2yz", "3yz", "4yz", "5yz"]
    severity = "transient"
    scope = "message"
    """
    failures = "".join(
        f"""
        [[rule]]
        name = "{rule.name}_failure"
        phases = {[str(phase) for phase in rule.phases]}
        failures = {[str(kind) for kind in rule.failures]}
        severity = "{rule.severity}"
        scope = "{rule.scope}"
        """
        for rule in RULES.rows
        if rule.failures
    )
    return f"version = 7\n[told_wait]\ntext = {told!r}\n" + "\n".join(rows) + rest + failures


def row(**values):
    """One row of a table."""
    fields = {"name": "mine", "phases": ["rcpt"], "severity": "permanent", "scope": "recipient"} | values
    lines = [f"{name} = {'true' if value is True else repr(value)}" for name, value in fields.items()]
    return "\n".join(["[[rule]]", *lines])


def test_a_table_can_be_extended():
    """A row before the others takes what it names and leaves the rest."""
    rules = Rules(table(row(replies=["550"], enhanced=["5.1.*", "none"], text="gone", suppress=True)))
    assert rules.version == 7
    assert rules.classify(Phase.RCPT, reply_of("550 5.1.9 GONE")).suppress
    assert rules.classify(Phase.RCPT, reply_of("550 gone")).rule == "mine"
    for other in ("550 5.2.1 gone", "550 5.1.9 here", "551 gone"):
        assert rules.classify(Phase.RCPT, reply_of(other)).rule == "rest"
    assert rules.classify(Phase.MAIL, reply_of("550 gone")).rule == "rest"


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([row(replies=["55"])], "replies are codes"),
        ([row(replies=["6yz"])], "replies are codes"),
        ([row(replies=["550"], enhanced=["5.1"])], "enhanced codes"),
        ([row()], "either about replies or about failures"),
        ([row(replies=["550"], failures=["timeout"])], "either about replies or about failures"),
        ([row(replies=["550"], text="(")], "not a pattern"),
        ([row(replies=["550"]), row(replies=["551"])], "two rows for the rule mine"),
        ([row(failures=["timeout"])], "two rows for the failure rcpt timeout"),
        ([row(replies=["550"], suppress=True, phases=["dot"])], "may suppress"),
        ([row(replies=["550"], suppress=True, severity="transient")], "may suppress"),
        ([row(replies=["550"], suppress=True, scope="sender")], "may suppress"),
        (
            [row(replies=["450"], severity="transient", wait_hint_s=MAX_ROW_WAIT_S + 1)],
            "wait_hint_s is at most",
        ),
        ([row(replies=["450"], severity="transient", wait_hint_s=-1)], "wait_hint_s is at most"),
        ([row(replies=["550"], wait_hint_s=60)], "only what is transient"),
        ([row(replies=["550"], retry="soon")], "only what is transient"),
        ([row(replies=["450"], severity="transient", retry="at_once", phases=["dot"])], "had no turn"),
        ([row(replies=["5yz"])], "rest: mine before it leaves nothing of 5yz at rcpt"),
    ],
)
def test_a_wrong_table_is_refused(rows, complaint):
    """Every mistake that could misjudge a reply stops the start, naming the row."""
    with pytest.raises(RulesError, match=complaint):
        Rules(table(*rows))


def test_a_table_with_a_gap_is_refused():
    """A class of replies, or a failure, that no row answers stops the start."""
    whole = table()
    with pytest.raises(RulesError, match="no row answers every 5yz at greeting"):
        Rules(whole.replace('"4yz", "5yz"', '"4yz"'))
    with pytest.raises(RulesError, match="no row answers: body claim_lost, mail claim_lost"):
        Rules(
            whole[: whole.index("[[rule]]", whole.index("unsafe_envelope_failure"))]
            + whole[whole.index("[[rule]]", whole.index("claim_lost_failure")) :]
        )


def test_a_lost_reply_after_the_dot_can_not_be_made_transient():
    """The table may be changed, that rule may not."""
    with pytest.raises(RulesError, match="unknown, nothing else"):
        Rules(table().replace('severity = "unknown"', 'severity = "transient"'))


@pytest.mark.parametrize(
    ("words", "wait_s"),
    [
        ("try again in 300 seconds", 300),
        ("Please retry in 5 minutes.", 300),
        ("come back in 00:04:59", 299),
        ("retry after 90s", 90),
        ("greylisted for 10 min", 600),
        ("wait 2-5 minutes", 300),
        ("try again in 1 hour", 3600),
        ("try later; back in 2 days", MAX_WAIT_HINT_S),
        ("back in 999999 d", MAX_WAIT_HINT_S),
        ("back in 99:59:59", MAX_WAIT_HINT_S),
        ("try again later", 0),
        ("try again in 0 seconds", 0),
        ("try again in 5 parsecs", 0),
        ("try again later. Limit: 100 messages in 60 seconds", 0),
        ("too many messages in 60 seconds, try again later", 0),
        ("try again later from [192.0.2.1]", 0),
        ("come back, your 1.5 minutes are over", 0),
    ],
)
def test_a_told_wait_is_understood(words, wait_s):
    """A number with a unit behind words that ask to come back; any other number is none. At most a day."""
    assert classify(Phase.AUTH, reply_of(f"454 4.7.0 {words}")).wait_hint_s == wait_s


def test_a_told_wait_replaces_that_of_the_row():
    """The server knows better than the row, also when it asks for less; what is final is not waited for."""
    assert classify(Phase.RCPT, reply_of("452 4.2.2 full, try again in 60 s")).wait_hint_s == 60
    assert classify(Phase.RCPT, reply_of("550 5.1.1 gone, try again in 60 s")).wait_hint_s == 0


@pytest.mark.parametrize("told", ["(", "in (?P<count>[0-9]+)"])
def test_a_table_that_can_not_read_waits_is_refused(told):
    """A pattern for waits without its groups would fail at the first reply."""
    with pytest.raises(RulesError, match="told_wait"):
        Rules(table(told=told))


def test_a_unit_that_nobody_knows_tells_nothing():
    """The pattern is data; what it finds is still judged."""
    rules = Rules(table())
    assert rules.classify(Phase.RCPT, reply_of("450 in 5 parsecs")).wait_hint_s == 0
    assert rules.classify(Phase.RCPT, reply_of("450 in 5 hours")).wait_hint_s == 18000
