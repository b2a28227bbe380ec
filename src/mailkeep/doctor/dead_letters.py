"""Why mail is given up: dead letters by what their last attempt met, and refusals for good that concern more than one mailbox. Pure."""

from typing import Final

from mailkeep.doctor.causes import BY_RULE, CAUSES, Cause, Severity, of_attempt
from mailkeep.doctor.findings import Check, Finding, ago, finding, skipped, times
from mailkeep.doctor.hop_history import history_of
from mailkeep.doctor.symptoms import Database, Symptoms, Unread
from mailkeep.store.diagnosis import DeadLetterGroup, EndedGroup

CRITICAL_COUNT: Final = 10
REFUSED_COUNT: Final = 3
REFUSED_SHARE: Final = 0.05
CRITICAL_SHARE: Final = 0.2
"""Of what ended in the window; single refusals are daily bread."""

_NOT_GIVEN_UP: Final = frozenset({Cause.SUPPRESSION_LIST, Cause.PROVIDER_LIST})


def dead_letters(symptoms: Symptoms) -> list[Check]:
    """Run the checks of mail that is given up."""
    database = symptoms.database
    if isinstance(database, Unread):
        down = finding(Cause.DATABASE_UNREACHABLE, Severity.CRITICAL, database.why)
        return [Check("dead letters", database.why, (down,))]
    return [_buried(database, symptoms), _refused(database)]


def _buried(database: Database, symptoms: Symptoms) -> Check:
    groups = database.dead_letters
    if isinstance(groups, Unread):
        return skipped("dead letters", groups.why, failed=groups.missing)
    by_cause: dict[tuple[Cause, str], list[DeadLetterGroup]] = {}
    for group in groups:
        by_cause.setdefault((_cause(group, database, symptoms), group.next_hop), []).append(group)
    found = tuple(_found(cause, hop, alike) for (cause, hop), alike in by_cause.items())
    return Check(
        "dead letters", f"{times(sum(group.count for group in groups), 'dead letter')} in the window", found
    )


def _cause(group: DeadLetterGroup, database: Database, symptoms: Symptoms) -> Cause:
    match group.cause:
        case "poison":
            return Cause.POISON
        case "operator":
            return Cause.BURIED_BY_HAND
    history = history_of(group.next_hop, database, symptoms)
    alike = (
        one
        for one in history.groups
        if (one.status, one.phase, one.rule) == (group.status, group.phase, group.rule)
    )
    last = next(alike, None)
    told_apart = history.cause(last) if last else of_attempt(group.status or "", group.phase, group.rule)
    return told_apart or Cause.DEFERRED


def _found(cause: Cause, hop: str, alike: list[DeadLetterGroup]) -> Finding:
    count = sum(group.count for group in alike)
    severity = Severity.CRITICAL if count >= CRITICAL_COUNT or cause is Cause.POISON else Severity.WARNING
    if cause is Cause.BURIED_BY_HAND:
        severity = Severity.OK
    evidence = (
        f"{hop}: {times(group.count, 'dead letter')}, {group.cause}, the last {ago(group.last_s)}, such as {group.example};"
        f" rule {group.rule}: {group.reason}"
        for group in alike
    )
    return finding(
        cause,
        severity,
        *evidence,
        about=hop
        if "{about}" in CAUSES[cause].step and "routes" in CAUSES[cause].step
        else str(alike[0].example),
    )


def _refused(database: Database) -> Check:
    groups = database.ended
    if isinstance(groups, Unread):
        return skipped("refusals for good", groups.why, failed=groups.missing)
    ended = sum(group.count for group in groups)
    by_cause: dict[Cause, list[EndedGroup]] = {}
    for group in groups:
        cause = BY_RULE.get(group.rule or "") if group.status == "failed" else None
        if cause is not None and cause not in _NOT_GIVEN_UP:
            by_cause.setdefault(cause, []).append(group)
    found = []
    for cause, alike in by_cause.items():
        count = sum(group.count for group in alike)
        if count < REFUSED_COUNT or count < REFUSED_SHARE * ended:
            continue
        severe = count >= CRITICAL_COUNT and count >= CRITICAL_SHARE * ended
        evidence = (
            f"{group.next_hop}: {times(group.count, 'delivery')} of {group.source} refused for good, such as {group.example};"
            f" rule {group.rule}: {group.reason}"
            for group in alike
        )
        severity = Severity.CRITICAL if severe else Severity.WARNING
        found.append(finding(cause, severity, *evidence, about=str(alike[0].example)))
    failed = sum(group.count for group in groups if group.status == "failed")
    return Check(
        "refusals for good", f"{failed:,} of {times(ended, 'delivery')} accepted in the window", tuple(found)
    )
