"""Why deliveries end suppressed: stub mode, our own list, the provider's. Pure."""

from typing import Final

from mailkeep.doctor.causes import Cause, Severity
from mailkeep.doctor.findings import Check, Finding, finding, skipped, times
from mailkeep.doctor.symptoms import Symptoms, Unread
from mailkeep.store.diagnosis import EndedGroup

LISTED_COUNT: Final = 3
LISTED_SHARE: Final = 0.05
"""Of what was accepted in the window: a list is made to be met now and then."""
PROVIDER_RULE: Final = "rcpt_provider_suppressed"
LIST_RULE: Final = "suppression_list"


def suppressed(symptoms: Symptoms) -> list[Check]:
    """Run the checks of suppressed outcomes."""
    database = symptoms.database
    if isinstance(database, Unread):
        down = finding(Cause.DATABASE_UNREACHABLE, Severity.CRITICAL, database.why)
        return [Check("suppressed deliveries", database.why, (down,))]
    if isinstance(database.ended, Unread):
        return [skipped("suppressed deliveries", database.ended.why, failed=database.ended.missing)]
    groups = [group for group in database.ended if group.status == "suppressed"]
    accepted = sum(group.count for group in database.ended)
    return [
        _stub([group for group in groups if group.rule is None and not group.tried], symptoms),
        _listed("suppression list", Cause.SUPPRESSION_LIST, _of(groups, LIST_RULE), accepted),
        _listed("the provider's own list", Cause.PROVIDER_LIST, _of(groups, PROVIDER_RULE), accepted),
    ]


def _of(groups: list[EndedGroup], rule: str) -> list[EndedGroup]:
    return [group for group in groups if group.rule == rule]


def _stub(groups: list[EndedGroup], symptoms: Symptoms) -> Check:
    """Whether deliveries were taken in stub mode; the mode of this environment alone proves nothing of the replicas."""
    here = "stub" if symptoms.configured.stub else "smtp"
    count = sum(group.count for group in groups)
    seen = f"{times(count, 'delivery')} suppressed by it in the window; MAIL_SMTP_MODE is {here} in this environment"
    found: tuple[Finding, ...] = ()
    if count:
        sources = ", ".join(sorted({group.source for group in groups}))
        found = (
            finding(Cause.STUB_MODE, Severity.CRITICAL, seen, f"sources: {sources}; never tried, on no list"),
        )
    return Check("stub mode", seen, found)


def _listed(name: str, cause: Cause, groups: list[EndedGroup], accepted: int) -> Check:
    count = sum(group.count for group in groups)
    seen = f"{count:,} of {times(accepted, 'delivery')} accepted in the window"
    if count < LISTED_COUNT or count < LISTED_SHARE * accepted:
        return Check(name, seen)
    evidence = (
        f"{times(group.count, 'delivery')} of {group.source}, class {group.delivery_class}, such as {group.example}: {group.reason}"
        for group in groups
    )
    return Check(name, seen, (finding(cause, Severity.WARNING, *evidence, about=str(groups[0].example)),))
