"""From what was heard in an attempt to its `Outcome`: how it ended, what that means for each recipient, the transcript.

Pure. `End` is the one thing that decided the transaction: a reply, or a failure. A recipient that was refused at RCPT
keeps that refusal; all others share the end (RFC 5321 section 3.3: the answer to the final dot is for all that were accepted).
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from mailkeep.core.delivery import AttemptStatus, Certainty
from mailkeep.core.outcome import Outcome, Phase, RecipientOutcome, Retry, Severity, Step, Verdict
from mailkeep.smtp.classify import FailureKind, classify, classify_failure
from mailkeep.smtp.envelope import Envelope
from mailkeep.smtp.reply import SERVICE_CLOSING, Reply, storable

_TEXTS: Final = {
    FailureKind.DNS: "the host name has no address",
    FailureKind.REFUSED: "connection refused",
    FailureKind.UNREACHABLE: "the host is unreachable",
    FailureKind.TIMEOUT: "no reply in time",
    FailureKind.CLOSED: "the next hop closed the connection",
    FailureKind.RESET: "the next hop reset the connection",
    FailureKind.TLS: "TLS failed",
    FailureKind.PROTOCOL: "the next hop broke the protocol",
    FailureKind.STARTTLS_NOT_OFFERED: "STARTTLS is required but not offered",
    FailureKind.AUTH_NOT_OFFERED: "no way to log in that this hop may use is offered",
    FailureKind.AUTH_IN_CLEAR: "a login is never sent where TLS does not protect and verify it",
    FailureKind.TOO_LARGE: "the message is larger than the next hop takes",
    FailureKind.NEEDS_SMTPUTF8: "an address needs SMTPUTF8, which is not offered",
    FailureKind.NEEDS_8BITMIME: "the message needs 8BITMIME, which is not offered",
    FailureKind.UNSAFE: "the envelope is unsafe",
    FailureKind.CLAIM_LOST: "this replica no longer holds the delivery",
}
_ENHANCED: Final = {
    FailureKind.TOO_LARGE: "5.3.4",
    FailureKind.NEEDS_SMTPUTF8: "5.6.7",
    FailureKind.NEEDS_8BITMIME: "5.6.3",
}
"""What the next hop's own announcement refuses: its answer, given in advance."""


class Heard(msgspec.Struct, frozen=True, gc=False):
    """One exchange as it happened; `reply` is None if none came, and a plain text for what is not an SMTP reply."""

    phase: Phase
    sent: str
    reply: Reply | str | None
    at_s: float


class End(msgspec.Struct, frozen=True, gc=False):
    """What decided a transaction, or kept it from beginning. `clean`: RSET makes the connection fit for the next."""

    phase: Phase
    verdict: Verdict
    status: AttemptStatus
    clean: bool
    code: int | None = None
    enhanced: str | None = None
    text: str = ""
    kind: FailureKind | None = None

    @property
    def shifted(self) -> bool:
        """Whether replies may have been paired with the wrong commands, so that no recipient's answer counts."""
        return self.kind is FailureKind.PROTOCOL and self.phase is not Phase.DOT

    @property
    def stale(self) -> bool:
        """Whether a reused connection turned out to be dead: nothing but a farewell came in answer to MAIL."""
        return self.phase is Phase.MAIL and (
            self.code == SERVICE_CLOSING
            or self.kind in (FailureKind.CLOSED, FailureKind.RESET, FailureKind.TLS)
        )


def ended_by_reply(phase: Phase, reply: Reply) -> End:
    """Return the end that `reply` makes in `phase`. Only the answer to the final dot can be a success."""
    verdict = classify(phase, reply)
    success = verdict.severity is Severity.SUCCESS
    if success and phase is not Phase.DOT:
        return ended_by_failure(phase, FailureKind.PROTOCOL, f"unexpected {reply.shown}")
    return End(
        phase,
        verdict,
        AttemptStatus.PROVIDER_ACCEPTED if success else AttemptStatus.PROVIDER_REJECTED,
        clean=success or (is_refusal(reply) and phase is not Phase.BODY),
        code=reply.code,
        enhanced=reply.enhanced,
        text=reply.text,
    )


def ended_by_failure(phase: Phase, kind: FailureKind, detail: str = "") -> End:
    """Return the end that a failure makes; `detail` says more than its kind and may come from anywhere."""
    enhanced = _ENHANCED.get(kind)
    if kind is FailureKind.TIMEOUT:
        status = AttemptStatus.TIMED_OUT
    else:
        status = AttemptStatus.PROVIDER_REJECTED if enhanced else AttemptStatus.TRANSPORT_FAILED
    text = f"{_TEXTS[kind]}: {storable(detail)}" if detail else _TEXTS[kind]
    return End(
        phase,
        classify_failure(phase, kind),
        status,
        clean=phase is Phase.MAIL and (enhanced is not None or kind is FailureKind.CLAIM_LOST),
        enhanced=enhanced,
        text=text,
        kind=kind,
    )


def is_refusal(reply: Reply) -> bool:
    """Whether `reply` refuses and the conversation goes on."""
    return reply.digit in (4, 5) and reply.code != SERVICE_CLOSING


def conclude(
    envelope: Envelope, end: End, heard: Sequence[Heard], *, began_s: float, ended_s: float
) -> Outcome:
    """Return the outcome of one attempt for `envelope`; instants are monotonic seconds."""
    answers: list[Reply | str | None] = []
    if end.phase is not Phase.MAIL and not end.shifted:
        answers = [entry.reply for entry in heard if entry.phase is Phase.RCPT]
    refusals = {
        position: answer
        for position, answer in enumerate(answers)
        if isinstance(answer, Reply) and answer.digit != 2
    }
    verdicts = {position: classify(Phase.RCPT, reply) for position, reply in refusals.items()}
    recipients = tuple(
        [
            _refused(ordinal, refusals[position], verdicts[position])
            if position in refusals
            else _shared(ordinal, end)
            for position, (ordinal, _) in enumerate(envelope.recipients)
        ]
    )
    worst = max(recipients, key=_weight) if refusals else recipients[0]
    left_open = _left_open(end, verdicts, len(recipients))
    settled_at_rcpt = len(refusals) == len(recipients)
    return Outcome(
        status=AttemptStatus.PROVIDER_REJECTED if settled_at_rcpt else end.status,
        certainty=Certainty.NOT_DELIVERED if settled_at_rcpt else _certainty(end),
        phase=Phase.RCPT if settled_at_rcpt else end.phase,
        severity=worst.severity,
        scope=worst.scope,
        rule=worst.rule,
        recipients=recipients,
        code=worst.code,
        enhanced=worst.enhanced,
        text=worst.text,
        steps=tuple([_step(entry, began_s) for entry in heard]),
        duration_ms=round((ended_s - began_s) * 1000, 3),
        retry=_retry(left_open),
        wait_hint_s=max((verdict.wait_hint_s for verdict in left_open), default=0.0),
    )


def _left_open(end: End, refusals: Mapping[int, Verdict], recipients: int) -> list[Verdict]:
    """Return the verdicts that leave somebody open."""
    verdicts = [*refusals.values(), end.verdict] if len(refusals) < recipients else [*refusals.values()]
    return [verdict for verdict in verdicts if verdict.severity in _OPEN]


def _retry(left_open: Sequence[Verdict]) -> Retry:
    """Return when all that is open is tried again: one who had no turn takes the others along, greylisting does not."""
    ways = {verdict.retry for verdict in left_open}
    if Retry.AT_ONCE in ways:
        return Retry.AT_ONCE
    return Retry.SOON if ways == {Retry.SOON} else Retry.LADDER


def _refused(ordinal: int, reply: Reply, verdict: Verdict) -> RecipientOutcome:
    return RecipientOutcome(
        ordinal=ordinal,
        severity=verdict.severity,
        scope=verdict.scope,
        rule=verdict.rule,
        code=reply.code,
        enhanced=reply.enhanced,
        text=reply.text,
        suppress=verdict.suppress,
    )


def _shared(ordinal: int, end: End) -> RecipientOutcome:
    return RecipientOutcome(
        ordinal=ordinal,
        severity=end.verdict.severity,
        scope=end.verdict.scope,
        rule=end.verdict.rule,
        code=end.code,
        enhanced=end.enhanced,
        text=end.text,
    )


_OPEN: Final = (Severity.TRANSIENT, Severity.UNKNOWN)
_WEIGHTS: Final = {Severity.SUCCESS: 0, Severity.PERMANENT: 1, Severity.TRANSIENT: 2, Severity.UNKNOWN: 3}


def _weight(recipient: RecipientOutcome) -> int:
    return _WEIGHTS[recipient.severity]


def _certainty(end: End) -> Certainty:
    if end.phase is not Phase.DOT:
        return Certainty.NOT_DELIVERED
    match end.verdict.severity:
        case Severity.SUCCESS:
            return Certainty.DELIVERED
        case Severity.UNKNOWN:
            return Certainty.UNKNOWN
        case _:
            return Certainty.NOT_DELIVERED


def _step(entry: Heard, began_s: float) -> Step:
    reply = entry.reply.shown if isinstance(entry.reply, Reply) else entry.reply or ""
    return Step(entry.phase, entry.sent, reply, round((entry.at_s - began_s) * 1000, 1))
