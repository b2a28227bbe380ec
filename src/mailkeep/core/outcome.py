"""What came of one attempt, as values.

A mail server may answer anything; each answer becomes an `Outcome`, never an exception. The words are those of
RFC 5321 (phases), RFC 3463 (enhanced codes) and the contract (statuses, certainty).
"""

from enum import StrEnum
from typing import Final

import msgspec

from mailkeep.core.delivery import AttemptStatus, Certainty

MAX_REPLY_CHARS: Final = 500
"""Reply text kept on an attempt; longer ones are cut (a server may send 20 MB)."""
MAX_WAIT_HINT_S: Final = 24 * 3600.0
"""A server that asks for more is asked again after a day: its word may delay mail, not bury it."""


class Phase(StrEnum):
    """How far the SMTP dialog came."""

    RENDER = "render"
    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    TLS = "tls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    BODY = "body"  # message bytes are flowing, the final dot has not left
    DOT = "dot"  # the final dot has left
    QUIT = "quit"


class Severity(StrEnum):
    """What a reply (or its absence) means for what it is about."""

    SUCCESS = "success"
    TRANSIENT = "transient"
    PERMANENT = "permanent"
    UNKNOWN = "unknown"


class Scope(StrEnum):
    """What a failure is about. Failures of `next_hop` and `credential` use up no rung of the ladder."""

    MESSAGE = "message"
    RECIPIENT = "recipient"
    SENDER = "sender"
    NEXT_HOP = "next_hop"
    CREDENTIAL = "credential"
    REPUTATION = "reputation"


class Retry(StrEnum):
    """When that which a transient failure left open is tried again."""

    LADDER = "ladder"  # after the next rung
    SOON = "soon"  # greylisted: a long rung is shortened at first
    AT_ONCE = "at_once"  # the server took no more in one transaction: in a new one, if this one delivered


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The classification of one reply or failure; `rule` names the row of the rules table that decided.

    `wait_hint_s` is what the server asked us to wait at least, 0 to `MAX_WAIT_HINT_S`.
    """

    severity: Severity
    scope: Scope
    rule: str
    suppress: bool = False
    retry: Retry = Retry.LADDER
    wait_hint_s: float = 0.0


class RecipientOutcome(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One recipient in one attempt. `ordinal` is its index in the delivery's recipient list, from 0."""

    ordinal: int
    severity: Severity
    scope: Scope
    rule: str
    code: int | None = None
    enhanced: str | None = None
    text: str = ""
    suppress: bool = False

    @property
    def reason(self) -> str:
        """What the next hop said of it, e.g. `550 5.1.1 No such user`; else the rule that decided."""
        return _said(self.code, self.enhanced, self.text) or self.rule

    @property
    def is_hard_bounce(self) -> bool:
        """Whether the next hop said that the address itself is good for nothing."""
        return self._says_suppress and self.scope is Scope.RECIPIENT

    @property
    def is_on_provider_list(self) -> bool:
        """Whether the next hop keeps the address on a suppression list of its own."""
        return self._says_suppress and self.scope is Scope.REPUTATION

    @property
    def _says_suppress(self) -> bool:
        return self.suppress and self.severity is Severity.PERMANENT


class Step(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One exchange of the SMTP dialog as kept on the attempt: secrets and addresses masked, text cut."""

    phase: Phase
    sent: str  # what we said, e.g. "MAIL FROM:<…>" or "AUTH PLAIN …"; "" when the server spoke first
    reply: str  # what came back, "250 2.1.0 Ok"; "" when nothing did
    at_ms: float  # since the attempt began


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """One finished attempt. `recipients` holds exactly the recipients that this attempt addressed.

    `retry` and `wait_hint_s` are for those it left open: the longest wait that any of their servers' answers asked for.
    """

    status: AttemptStatus
    certainty: Certainty
    phase: Phase
    severity: Severity
    scope: Scope
    rule: str
    recipients: tuple[RecipientOutcome, ...]
    code: int | None = None
    enhanced: str | None = None
    text: str = ""
    steps: tuple[Step, ...] = ()
    duration_ms: float = 0.0
    retry: Retry = Retry.LADDER
    wait_hint_s: float = 0.0

    @property
    def reason(self) -> str:
        """The one line an operator reads, e.g. `421 4.3.2 Service temporarily unavailable`."""
        return _said(self.code, self.enhanced, self.text) or f"{self.status} at {self.phase}"


def _said(code: int | None, enhanced: str | None, text: str) -> str:
    parts = (str(code) if code else "", enhanced or "", text)
    return " ".join(part for part in parts if part)


def uniform(
    ordinals: tuple[int, ...],
    verdict: Verdict,
    *,
    status: AttemptStatus,
    certainty: Certainty,
    phase: Phase,
    code: int | None = None,
    enhanced: str | None = None,
    text: str = "",
    steps: tuple[Step, ...] = (),
    duration_ms: float = 0.0,
) -> Outcome:
    """Build the outcome of an attempt that went alike for every recipient it addressed."""
    return Outcome(
        status=status,
        certainty=certainty,
        phase=phase,
        severity=verdict.severity,
        scope=verdict.scope,
        rule=verdict.rule,
        recipients=tuple(
            RecipientOutcome(
                ordinal=ordinal,
                severity=verdict.severity,
                scope=verdict.scope,
                rule=verdict.rule,
                code=code,
                enhanced=enhanced,
                text=text,
                suppress=verdict.suppress,
            )
            for ordinal in ordinals
        ),
        code=code,
        enhanced=enhanced,
        text=text,
        steps=steps,
        duration_ms=duration_ms,
        retry=verdict.retry,
        wait_hint_s=verdict.wait_hint_s,
    )
