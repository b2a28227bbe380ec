"""What a reply, or its absence, means: `rules.toml`, compiled.

The table is data so that it can be read, reviewed and extended without code; each attempt stores the name of the row that
decided. The first row that fits decides. Loading proves that the table answers every reply of every phase and every
failure that can happen, so `classify` never guesses. How long to wait comes from the reply's own words where they say it
("try again in 5 minutes"), else from the row. RFC 5321 section 4.2, RFC 3463, RFC 5248.
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from importlib import resources
from itertools import product
from typing import Final

import msgspec

from mailkeep.core.outcome import MAX_WAIT_HINT_S, Phase, Retry, Scope, Severity, Verdict
from mailkeep.smtp.reply import Reply


class FailureKind(StrEnum):
    """Why there was no reply that decides."""

    DNS = "dns"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    CLOSED = "closed"
    RESET = "reset"
    TLS = "tls"
    PROTOCOL = "protocol"
    STARTTLS_NOT_OFFERED = "starttls_not_offered"
    AUTH_NOT_OFFERED = "auth_not_offered"
    AUTH_IN_CLEAR = "auth_in_clear"
    TOO_LARGE = "too_large"
    NEEDS_SMTPUTF8 = "needs_smtputf8"
    NEEDS_8BITMIME = "needs_8bitmime"
    UNSAFE = "unsafe"
    CLAIM_LOST = "claim_lost"


REPLY_PHASES: Final = (
    Phase.GREETING,
    Phase.EHLO,
    Phase.STARTTLS,
    Phase.AUTH,
    Phase.MAIL,
    Phase.RCPT,
    Phase.DATA,
    Phase.BODY,
    Phase.DOT,
)
"""Phases whose replies decide something; nothing depends on the answer to QUIT."""
_BROKEN: Final = (
    FailureKind.UNREACHABLE,
    FailureKind.TIMEOUT,
    FailureKind.CLOSED,
    FailureKind.RESET,
    FailureKind.TLS,
    FailureKind.PROTOCOL,
)
_POSSIBLE_FAILURES: Final = frozenset(
    [
        (Phase.CONNECT, FailureKind.DNS),
        (Phase.CONNECT, FailureKind.REFUSED),
        *product((Phase.CONNECT, Phase.TLS, *REPLY_PHASES), _BROKEN),
        (Phase.STARTTLS, FailureKind.STARTTLS_NOT_OFFERED),
        (Phase.AUTH, FailureKind.AUTH_NOT_OFFERED),
        (Phase.AUTH, FailureKind.AUTH_IN_CLEAR),
        (Phase.MAIL, FailureKind.TOO_LARGE),
        (Phase.MAIL, FailureKind.NEEDS_SMTPUTF8),
        (Phase.MAIL, FailureKind.NEEDS_8BITMIME),
        (Phase.MAIL, FailureKind.UNSAFE),
        (Phase.MAIL, FailureKind.CLAIM_LOST),
        (Phase.BODY, FailureKind.CLAIM_LOST),
    ]
)
MAX_ROW_WAIT_S: Final = 600.0
"""A row's own `wait_hint_s` stays below the life of a login code: only a server's word may let one expire."""
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_SUPPRESSING_SCOPES: Final = (Scope.RECIPIENT, Scope.REPUTATION)
_REPLY_PATTERN: Final = re.compile(r"[1-5](?:yz|[0-9]{2})")
_ENHANCED_PATTERN: Final = re.compile(r"[245]\.[0-9]{1,3}\.(?:[0-9]{1,3}|\*)|none")


class RulesError(ValueError):
    """The rules table is wrong; the message names the row."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row. It fits a reply if all that it names does, and a failure if it names that failure.

    `replies` are codes (`550`) or classes (`5yz`), `enhanced` codes (`5.1.1`), subjects (`5.7.*`) or `none`, `text` a
    pattern searched for in any letter case. `wait_hint_s` counts where the reply tells no wait.
    """

    name: str
    phases: tuple[Phase, ...]
    severity: Severity
    scope: Scope
    replies: tuple[str, ...] = ()
    enhanced: tuple[str, ...] = ()
    text: str = ""
    failures: tuple[FailureKind, ...] = ()
    suppress: bool = False
    retry: Retry = Retry.LADDER
    wait_hint_s: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """What the row decides."""
        return Verdict(self.severity, self.scope, self.name, self.suppress, self.retry, self.wait_hint_s)

    def has_class(self, digit: int) -> bool:
        """Whether some reply of the class `digit` could fit."""
        return any(pattern[0] == str(digit) for pattern in self.replies)

    def fits_all(self, digit: int) -> bool:
        """Whether every reply of the class `digit` fits."""
        return f"{digit}yz" in self.replies and not self.enhanced and not self.text


class _Row:
    """A rule made ready for matching."""

    __slots__ = ("_classes", "_codes", "_enhanced", "_text", "verdict")

    def __init__(self, rule: Rule) -> None:
        self.verdict = rule.verdict
        self._codes = frozenset(int(pattern) for pattern in rule.replies if pattern.isdigit())
        self._classes = frozenset(int(pattern[0]) for pattern in rule.replies if not pattern.isdigit())
        self._enhanced = frozenset(rule.enhanced)
        self._text = re.compile(rule.text, re.IGNORECASE) if rule.text else None

    def fits(self, reply: Reply) -> bool:
        return (
            (reply.digit in self._classes or reply.code in self._codes)
            and (not self._enhanced or self._fits_enhanced(reply.enhanced))
            and (self._text is None or self._text.search(reply.text) is not None)
        )

    def _fits_enhanced(self, enhanced: str | None) -> bool:
        if enhanced is None:
            return "none" in self._enhanced
        return enhanced in self._enhanced or f"{enhanced.rpartition('.')[0]}.*" in self._enhanced


class ToldWait(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How replies say how long to wait: `text` has the groups `clock`, or `count` and `unit`."""

    text: str


class RulesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: its version (changed with any row), how waits are told, and the rows, first fit first."""

    version: int
    told_wait: ToldWait
    rule: tuple[Rule, ...]


class Rules:
    """A table that was proved whole. `rows` are the rules, and `told_wait` the pattern for waits, as written."""

    def __init__(self, source: str | bytes) -> None:
        file = msgspec.toml.decode(source, type=RulesFile)
        self.version = file.version
        self.rows = file.rule
        _check_rows(self.rows)
        self.told_wait = file.told_wait.text
        self._told_wait = _told_wait(self.told_wait)
        self._replies = {
            (phase, digit): tuple(
                _Row(rule) for rule in self.rows if phase in rule.phases and rule.has_class(digit)
            )
            for phase, digit in product(REPLY_PHASES, range(1, 6))
        }
        self._failures = {
            (phase, kind): rule.verdict
            for rule in self.rows
            for phase, kind in product(rule.phases, rule.failures)
        }

    def classify(self, phase: Phase, reply: Reply) -> Verdict:
        """Return what `reply` means in `phase`, one of `REPLY_PHASES`."""
        verdict = next(row.verdict for row in self._replies[phase, reply.digit] if row.fits(reply))
        if verdict.severity is Severity.TRANSIENT and (told_s := self._told_wait_s(reply.text)):
            return msgspec.structs.replace(verdict, wait_hint_s=min(told_s, MAX_WAIT_HINT_S))
        return verdict

    def classify_failure(self, phase: Phase, kind: FailureKind) -> Verdict:
        """Return what it means that `phase` ended by `kind`. Raises KeyError for a pair that cannot happen."""
        return self._failures[phase, kind]

    def _told_wait_s(self, text: str) -> float:
        told = self._told_wait.search(text)
        if told is None:
            return 0.0
        if told["clock"]:
            hours, minutes, seconds = map(int, told["clock"].split(":"))
            return 3600.0 * hours + 60 * minutes + seconds
        return float(told["count"]) * _UNITS_S.get(told["unit"][0].lower(), 0)


def _told_wait(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text, re.IGNORECASE)
    except re.error as fault:
        raise RulesError(f"told_wait: text is not a pattern: {fault}") from fault
    if set(pattern.groupindex) != {"clock", "count", "unit"}:
        raise RulesError("told_wait: text has the groups clock, count and unit")
    return pattern


def _check_rows(rows: tuple[Rule, ...]) -> None:
    _check_unique("rule", (rule.name for rule in rows))
    for rule in rows:
        _check_row(rule)
    for phase, digit in product(REPLY_PHASES, range(1, 6)):
        fitting = [rule for rule in rows if phase in rule.phases and rule.has_class(digit)]
        last = next((rule for rule in fitting if rule.fits_all(digit)), None)
        if last is None:
            raise RulesError(f"no row answers every {digit}yz at {phase}")
        if last is not fitting[-1]:
            raise RulesError(
                f"{fitting[-1].name}: {last.name} before it leaves nothing of {digit}yz at {phase}"
            )
    failures = [f"{phase} {kind}" for rule in rows for phase, kind in product(rule.phases, rule.failures)]
    _check_unique("failure", failures)
    if missing := {f"{phase} {kind}" for phase, kind in _POSSIBLE_FAILURES} - set(failures):
        raise RulesError(f"no row answers: {', '.join(sorted(missing))}")


def _check_row(rule: Rule) -> None:
    if not all(map(_REPLY_PATTERN.fullmatch, rule.replies)):
        raise RulesError(f"{rule.name}: replies are codes such as 550 or classes such as 5yz")
    if not all(map(_ENHANCED_PATTERN.fullmatch, rule.enhanced)):
        raise RulesError(f"{rule.name}: enhanced codes are like 5.1.1, 5.7.* or none")
    if bool(rule.replies) == bool(rule.failures):
        raise RulesError(f"{rule.name}: a row is either about replies or about failures")
    if rule.suppress and (
        rule.phases != (Phase.RCPT,)
        or rule.severity is not Severity.PERMANENT
        or rule.scope not in _SUPPRESSING_SCOPES
    ):
        raise RulesError(f"{rule.name}: only a hard answer to one recipient, at RCPT, may suppress")
    if not 0 <= rule.wait_hint_s <= MAX_ROW_WAIT_S:
        raise RulesError(f"{rule.name}: wait_hint_s is at most {MAX_ROW_WAIT_S:.0f}")
    if rule.severity is not Severity.TRANSIENT and (rule.wait_hint_s or rule.retry is not Retry.LADDER):
        raise RulesError(f"{rule.name}: only what is transient is waited for")
    if rule.retry is Retry.AT_ONCE and rule.phases != (Phase.RCPT,):
        raise RulesError(f"{rule.name}: only a recipient that had no turn is tried at once")
    if Phase.DOT in rule.phases and rule.failures and rule.severity is not Severity.UNKNOWN:
        raise RulesError(f"{rule.name}: a reply that was lost after the final dot is unknown, nothing else")
    try:
        re.compile(rule.text)
    except re.error as fault:
        raise RulesError(f"{rule.name}: text is not a pattern: {fault}") from fault


def _check_unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RulesError(f"two rows for the {what} {name}")
        seen.add(name)


RULES: Final = Rules(resources.files(__package__).joinpath("rules.toml").read_bytes())
classify: Final = RULES.classify
classify_failure: Final = RULES.classify_failure
