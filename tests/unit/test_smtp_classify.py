"""The rules table: replies as real servers word them, and what they mean here."""

import pytest

from mailkeep.core.outcome import Phase, Scope, Severity
from mailkeep.smtp.classify import (
    REPLY_PHASES,
    RULES,
    FailureKind,
    Rules,
    RulesError,
    classify,
    classify_failure,
)
from mailkeep.smtp.reply import ReplyParser

# phase, reply, rule
REPLIES = [
    # before MAIL
    ("greeting", "220 mx.example.test ESMTP Postfix", "going_on"),
    ("greeting", "421 4.3.2 Service temporarily unavailable", "next_hop_closing"),
    ("greeting", "421 4.7.0 Too many connections from 192.0.2.1", "next_hop_closing"),
    ("greeting", "450 4.7.1 please come back", "next_hop_unwilling"),
    ("greeting", "521 5.3.2 host does not accept mail", "next_hop_unwilling"),
    ("greeting", "554 5.7.1 blocked using zen.spamhaus.org", "next_hop_unwilling"),
    ("greeting", "354 hm", "unexpected_reply"),
    ("ehlo", "250 hi", "going_on"),
    ("ehlo", "504 5.5.2 <x>: Helo command rejected: need fully-qualified hostname", "next_hop_unwilling"),
    ("ehlo", "421 4.4.2 timeout exceeded", "next_hop_closing"),
    ("starttls", "220 2.0.0 Ready to start TLS", "going_on"),
    ("starttls", "454 4.7.0 TLS not available due to local problem", "starttls_refused"),
    ("starttls", "502 5.5.1 Error: command not implemented", "starttls_refused"),
    ("auth", "235 2.7.0 Authentication successful", "going_on"),
    ("auth", "535 5.7.8 Error: authentication failed: authentication failure", "login_refused"),
    ("auth", "535 Authentication Credentials Invalid", "login_refused"),
    ("auth", "534 5.7.9 Application-specific password required", "login_refused"),
    ("auth", "530 5.7.0 Must issue a STARTTLS command first", "login_refused"),
    ("auth", "538 5.7.11 Encryption required for requested authentication mechanism", "login_refused"),
    ("auth", "503 5.5.1 Error: authentication not enabled", "login_refused"),
    (
        "auth",
        "454 4.7.0 Temporary authentication failure: Connection lost to authentication server",
        "login_deferred",
    ),
    ("auth", "432 4.7.12 A password transition is needed", "login_deferred"),
    ("auth", "421 4.7.0 Try again later, closing connection.", "next_hop_closing"),
    ("auth", "334 UGFzc3dvcmQ6", "unexpected_reply"),
    # MAIL
    ("mail", "250 2.1.0 Ok", "going_on"),
    ("mail", "421 4.3.0 Temporary System Problem. Try again later", "mail_sender_deferred"),
    ("mail", "451 4.3.0 Error: queue file write error", "mail_sender_deferred"),
    ("mail", "452 4.3.1 Insufficient system storage", "mail_sender_deferred"),
    ("mail", "450 4.1.8 <a@b.test>: Sender address rejected: Domain not found", "mail_sender_deferred"),
    ("mail", "454 4.7.0 Throttling failure: Maximum sending rate exceeded", "mail_sender_deferred"),
    ("mail", "530 5.7.0 Authentication required", "login_required"),
    ("mail", "530 5.7.57 Client not authenticated to send mail", "login_required"),
    ("mail", "550 5.7.1 Client was not authenticated", "login_required_by_text"),
    ("mail", "550 SMTP Authentication is required", "login_required_by_text"),
    ("mail", "503 5.5.1 Error: nested MAIL command", "out_of_sequence"),
    ("mail", "552 5.3.4 Message size exceeds fixed limit", "mail_too_large"),
    ("mail", "552 message too big", "mail_too_large"),
    ("mail", "554 5.3.4 Requested mail action not accepted: too big", "mail_too_large_by_enhanced_code"),
    ("mail", "553 5.6.7 SMTPUTF8 address not supported", "mail_needs_smtputf8"),
    ("mail", "553 5.7.1 <a@b.test>: Sender address rejected: not owned by user ann", "mail_sender_refused"),
    ("mail", "550 5.1.8 Sender domain does not exist", "mail_sender_refused"),
    ("mail", "501 5.1.7 Bad sender address syntax", "mail_sender_refused"),
    ("mail", "550 5.7.60 Client does not have permissions to send as this sender", "mail_sender_refused"),
    ("mail", "555 5.5.4 Unsupported option: SIZE", "mail_sender_refused"),
    (
        "mail",
        "553 5.7.1 [BL21] Connections will not be accepted from 192.0.2.1, because the ip is in Spamhaus's list",
        "reputation",
    ),
    (
        "mail",
        "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to user complaints",
        "reputation",
    ),
    (
        "mail",
        "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Part of their network is on our block list (S3140).",
        "reputation",
    ),
    ("mail", "354 hm", "unexpected_reply"),
    # RCPT
    ("rcpt", "250 2.1.5 Ok", "going_on"),
    ("rcpt", "251 User not local; will forward", "going_on"),
    ("rcpt", "252 Cannot VRFY user", "going_on"),
    (
        "rcpt",
        "450 4.2.0 <a@b.test>: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch",
        "rcpt_greylisted",
    ),
    ("rcpt", "451 4.7.1 Greylisting in action, please come back later", "rcpt_greylisted"),
    ("rcpt", "421 4.7.1 Graylisted", "rcpt_greylisted"),
    ("rcpt", "421 4.3.2 Service temporarily unavailable", "rcpt_deferred"),
    ("rcpt", "451 4.3.0 Temporary lookup failure", "rcpt_deferred"),
    ("rcpt", "450 4.1.1 <a@b.test>: Recipient address rejected: unverified address", "rcpt_deferred"),
    ("rcpt", "452 4.5.3 Error: too many recipients", "rcpt_too_many"),
    ("rcpt", "452 Too many recipients received this hour", "rcpt_too_many_by_text"),
    ("rcpt", "552 Too many recipients", "rcpt_too_many_by_text"),
    ("rcpt", "452 4.2.2 The email account that you tried to reach is over quota", "rcpt_over_quota"),
    ("rcpt", "552 5.2.2 Mailbox is full", "rcpt_over_quota_for_good"),
    (
        "rcpt",
        "550 5.1.1 <a@b.test>: Recipient address rejected: User unknown in virtual mailbox table",
        "rcpt_mailbox_gone",
    ),
    (
        "rcpt",
        "550-5.1.1 The email account that you tried to reach does not exist.\r\n550 5.1.1 https://support.example.test",
        "rcpt_mailbox_gone",
    ),
    (
        "rcpt",
        "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup",
        "rcpt_mailbox_gone",
    ),
    ("rcpt", "550 5.2.1 The email account that you tried to reach is disabled", "rcpt_mailbox_gone"),
    ("rcpt", "553 5.1.3 The recipient address is not a valid RFC 5321 address", "rcpt_mailbox_gone"),
    ("rcpt", "550 5.1.2 Host unknown", "rcpt_mailbox_gone"),
    ("rcpt", "551 User not local; please try <a@b.test>", "rcpt_mailbox_moved"),
    ("rcpt", "550 No such user here", "rcpt_mailbox_gone_by_text"),
    ("rcpt", "550 <a@b.test>: User unknown", "rcpt_mailbox_gone_by_text"),
    ("rcpt", "550 Unknown recipient <a@b.test>", "rcpt_mailbox_gone_by_text"),
    ("rcpt", "550 Requested action not taken: mailbox unavailable", "rcpt_mailbox_gone_by_text"),
    ("rcpt", "550 5.5.0 Requested action not taken: mailbox unavailable", "rcpt_mailbox_gone_by_text"),
    ("rcpt", "550 a@b.test is not a valid mailbox", "rcpt_mailbox_gone_by_text"),
    ("rcpt", "554 delivery error: dd This user doesn't have a b.test account", "rcpt_mailbox_gone_by_text"),
    ("rcpt", "550 unrouteable address", "rcpt_mailbox_gone_by_text"),
    ("rcpt", "550 Sender verify failed", "rcpt_sender_refused_by_text"),
    ("rcpt", "550 5.1.8 <f@x.test>: Sender address rejected: Domain not found", "rcpt_sender_refused"),
    (
        "rcpt",
        "553 5.7.1 <f@x.test>: Sender address rejected: not owned by user",
        "rcpt_sender_refused_by_text",
    ),
    ("rcpt", "550 Sender unknown", "rcpt_sender_refused_by_text"),
    ("rcpt", "554 5.7.1 <a@b.test>: Relay access denied", "rcpt_relay_denied"),
    ("rcpt", "550 5.7.1 Unable to relay for a@b.test", "rcpt_relay_denied"),
    ("rcpt", "550 relaying denied", "rcpt_relay_denied"),
    (
        "rcpt",
        "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",
        "reputation",
    ),
    ("rcpt", "550 5.7.26 This mail has been blocked because the sender is unauthenticated", "reputation"),
    ("rcpt", "550 5.7.23 SPF validation failed", "reputation"),
    ("rcpt", "550 5.7.1 Email rejected per DMARC policy for x.test", "reputation"),
    ("rcpt", "550 5.7.606 Access denied, banned sending IP [192.0.2.1]", "reputation"),
    ("rcpt", "450 4.7.25 Client host rejected: cannot find your hostname, [192.0.2.1]", "reputation"),
    (
        "rcpt",
        "421 4.7.0 Our system has detected an unusual rate of unsolicited mail originating from your IP address",
        "reputation",
    ),
    ("rcpt", "554 5.7.1 poor reputation", "reputation"),
    ("rcpt", "550 5.7.1 Message rejected: address is on the suppression list", "rcpt_provider_suppressed"),
    ("rcpt", "554 5.7.0 recipient has been suppressed", "rcpt_provider_suppressed"),
    ("rcpt", "550 5.7.1 not permitted by site policy", "rcpt_policy"),
    ("rcpt", "550 5.7.133 Sender not authenticated for group", "rcpt_policy"),
    ("rcpt", "550 5.4.1 Recipient address rejected: Access denied", "rcpt_refused"),
    ("rcpt", "550 administrative prohibition", "rcpt_refused"),
    ("rcpt", "530 5.7.1 Authentication required", "login_required"),
    ("rcpt", "503 5.5.1 Error: need MAIL command", "out_of_sequence"),
    ("rcpt", "354 hm", "unexpected_reply"),
    # DATA, body, dot
    ("data", "354 End data with <CR><LF>.<CR><LF>", "data_going_on"),
    ("data", "250 hm", "unexpected_reply_to_data"),
    ("data", "451 4.3.0 queue file write error", "message_deferred"),
    ("data", "554 5.5.1 Error: no valid recipients", "message_refused"),
    ("body", "552 5.3.4 Message too big", "message_too_large"),
    ("body", "421 4.4.2 timeout exceeded", "message_closing"),
    ("body", "250 hm", "unexpected_reply_in_body"),
    ("dot", "250 2.0.0 Ok: queued as 4Z8", "delivered"),
    ("dot", "299 odd", "delivered"),
    ("dot", "421 4.3.0 closing", "message_closing"),
    ("dot", "451 4.7.1 Service unavailable - try again later", "message_deferred"),
    ("dot", "452 4.3.1 Insufficient system storage", "message_deferred"),
    ("dot", "454 Throttling failure: Daily message quota exceeded.", "message_deferred"),
    ("dot", "552 5.2.3 Your message exceeded size limits", "message_too_large"),
    ("dot", "554 5.3.4 too big", "message_too_large_by_enhanced_code"),
    ("dot", "550 5.7.1 likely unsolicited mail", "message_policy"),
    ("dot", "554 5.7.9 Message not accepted for policy reasons", "message_policy"),
    ("dot", "550 5.1.1 <a@b.test> User doesn't exist", "message_refused"),
    ("dot", "554 Message rejected: Email address is not verified.", "message_refused"),
    ("dot", "554 5.6.0 Message content rejected", "message_refused"),
    ("dot", "354 again", "reply_unreadable"),
    ("dot", "199 hm", "reply_unreadable"),
]

MEANING = {
    "going_on": (Severity.SUCCESS, Scope.MESSAGE),
    "data_going_on": (Severity.SUCCESS, Scope.MESSAGE),
    "delivered": (Severity.SUCCESS, Scope.MESSAGE),
    "next_hop_closing": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "next_hop_unwilling": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "starttls_refused": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "login_deferred": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "login_refused": (Severity.TRANSIENT, Scope.CREDENTIAL),
    "login_required": (Severity.TRANSIENT, Scope.CREDENTIAL),
    "login_required_by_text": (Severity.TRANSIENT, Scope.CREDENTIAL),
    "out_of_sequence": (Severity.TRANSIENT, Scope.MESSAGE),
    "unexpected_reply": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "unexpected_reply_to_data": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "unexpected_reply_in_body": (Severity.TRANSIENT, Scope.NEXT_HOP),
    "reputation": (Severity.TRANSIENT, Scope.REPUTATION),
    "mail_sender_deferred": (Severity.TRANSIENT, Scope.SENDER),
    "mail_sender_refused": (Severity.PERMANENT, Scope.SENDER),
    "mail_too_large": (Severity.PERMANENT, Scope.MESSAGE),
    "mail_too_large_by_enhanced_code": (Severity.PERMANENT, Scope.MESSAGE),
    "mail_needs_smtputf8": (Severity.PERMANENT, Scope.MESSAGE),
    "rcpt_greylisted": (Severity.TRANSIENT, Scope.RECIPIENT),
    "rcpt_too_many": (Severity.TRANSIENT, Scope.RECIPIENT),
    "rcpt_too_many_by_text": (Severity.TRANSIENT, Scope.RECIPIENT),
    "rcpt_over_quota": (Severity.TRANSIENT, Scope.RECIPIENT),
    "rcpt_deferred": (Severity.TRANSIENT, Scope.RECIPIENT),
    "rcpt_provider_suppressed": (Severity.PERMANENT, Scope.REPUTATION),
    "rcpt_sender_refused": (Severity.PERMANENT, Scope.SENDER),
    "rcpt_sender_refused_by_text": (Severity.PERMANENT, Scope.SENDER),
    "rcpt_mailbox_gone": (Severity.PERMANENT, Scope.RECIPIENT),
    "rcpt_mailbox_gone_by_text": (Severity.PERMANENT, Scope.RECIPIENT),
    "rcpt_mailbox_moved": (Severity.PERMANENT, Scope.RECIPIENT),
    "rcpt_over_quota_for_good": (Severity.PERMANENT, Scope.RECIPIENT),
    "rcpt_relay_denied": (Severity.PERMANENT, Scope.RECIPIENT),
    "rcpt_policy": (Severity.PERMANENT, Scope.RECIPIENT),
    "rcpt_refused": (Severity.PERMANENT, Scope.RECIPIENT),
    "message_closing": (Severity.TRANSIENT, Scope.MESSAGE),
    "message_deferred": (Severity.TRANSIENT, Scope.MESSAGE),
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


def reply_of(text):
    """Parse one reply."""
    (reply,) = ReplyParser().feed(f"{text}\r\n".encode())
    return reply


@pytest.mark.parametrize(("phase", "text", "rule"), REPLIES)
def test_replies_mean_what_they_mean(phase, text, rule):
    """Each real-world reply finds its row, and the row its severity, scope and suppression."""
    verdict = classify(Phase(phase), reply_of(text))
    assert verdict.rule == rule
    assert (verdict.severity, verdict.scope) == MEANING[rule]
    assert verdict.suppress is (rule in SUPPRESSING)


@pytest.mark.parametrize(("phase", "kind", "rule", "severity", "scope"), FAILURES)
def test_failures_mean_what_they_mean(phase, kind, rule, severity, scope):
    """A missing reply has a meaning by phase: outage before MAIL, a rung after it, unknown after the dot."""
    verdict = classify_failure(Phase(phase), FailureKind(kind))
    assert (verdict.rule, verdict.severity, verdict.scope) == (rule, severity, scope)
    assert not verdict.suppress


def test_no_row_is_without_an_example():
    """A row that no reply and no failure above reaches is either wrong or not understood."""
    assert {rule for *_, rule in REPLIES} | {rule for _, _, rule, *_ in FAILURES} == {
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


def table(*rows):
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
    return "version = 7\n" + "\n".join(rows) + rest + failures


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
