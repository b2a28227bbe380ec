"""What checks give: each says what it saw, and the findings it made of that, or why it could not be run."""

from typing import Final

import msgspec

from mailkeep.core.redact import mask_addresses
from mailkeep.doctor.causes import CAUSES, Cause, Incident, Severity

MAX_EVIDENCE_CHARS: Final = 300
"""Of one line of evidence: a reply may be long."""
_ORDER: Final = tuple(Severity)


class Finding(msgspec.Struct, frozen=True):
    """A cause that was found: what is concerned (a next hop, a producer), the evidence, and what to do next."""

    cause: Cause
    severity: Severity
    about: str | None
    evidence: tuple[str, ...]
    next_step: str


class Check(msgspec.Struct, frozen=True):
    """One check: what it saw, or why it was `not_run`; `failed`: it should have been possible."""

    name: str
    seen: str = ""
    findings: tuple[Finding, ...] = ()
    not_run: str | None = None
    failed: bool = False

    @property
    def severity(self) -> Severity:
        """The worst of its findings; a check that could not be run is a warning."""
        return worst([*(found.severity for found in self.findings), *([Severity.WARNING] * self.failed)])


class Diagnosis(msgspec.Struct, frozen=True):
    """One incident, judged."""

    incident: Incident
    severity: Severity
    causes: tuple[Cause, ...]
    checks: tuple[Check, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What its checks found, the worst first."""
        found = [finding for check in self.checks for finding in check.findings]
        return tuple(sorted(found, key=lambda finding: -_ORDER.index(finding.severity)))


def worst(severities: list[Severity]) -> Severity:
    """Return the worst of `severities`; of none, `ok`."""
    return max(severities, key=_ORDER.index, default=Severity.OK)


def diagnosis(incident: Incident, checks: list[Check]) -> Diagnosis:
    """Sum up `checks`. The causes named are those that are more than `ok`."""
    named = [found.cause for check in checks for found in check.findings if found.severity is not Severity.OK]
    return Diagnosis(
        incident, worst([check.severity for check in checks]), tuple(dict.fromkeys(named)), tuple(checks)
    )


def finding(cause: Cause, severity: Severity, *evidence: str, about: str | None = None) -> Finding:
    """Return a finding with the next step of its cause."""
    return Finding(
        cause,
        severity,
        about,
        tuple(mask_addresses(line)[:MAX_EVIDENCE_CHARS] for line in evidence if line),
        CAUSES[cause].step.format(about=about or "NAME"),
    )


def skipped(name: str, why: str, *, failed: bool = False) -> Check:
    """Return a check that was not run."""
    return Check(name, not_run=why, failed=failed)


def times(count: int, what: str) -> str:
    """Return `count` of `what`, in words: `1 attempt`, `3 deliveries`."""
    if count == 1:
        return f"1 {what}"
    return f"{count:,} {what[:-1]}ies" if what.endswith("y") else f"{count:,} {what}s"


def ago(seconds: float) -> str:
    """Return how long ago, for people."""
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.0f} h ago"
