"""Why attempts time out: which phase falls silent, against which limit, and whether the server is dead, slow or cut short. Pure."""

from mailkeep.doctor.causes import TIME_CAUSES, Cause, Severity
from mailkeep.doctor.findings import Check, Finding, finding, skipped, times
from mailkeep.doctor.hop_history import ENDLESS_S, HopHistory, histories, probe_cause, slowness, told_of_probe
from mailkeep.doctor.symptoms import Symptoms, Unread


def timeouts(symptoms: Symptoms) -> list[Check]:
    """Run the checks of timeouts."""
    return [*_attempts(symptoms), *_reachable(symptoms)]


def _attempts(symptoms: Symptoms) -> list[Check]:
    database = symptoms.database
    if isinstance(database, Unread):
        down = finding(Cause.DATABASE_UNREACHABLE, Severity.CRITICAL, database.why)
        return [Check("send duration against timeout", database.why, (down,))]
    if isinstance(database.attempts, Unread):
        why = database.attempts
        return [skipped("send duration against timeout", why.why, failed=why.missing)]
    return [_duration(history) for history in histories(database, symptoms)] or [
        skipped("send duration against timeout", "there is no next hop and no attempt")
    ]


def _duration(history: HopHistory) -> Check:
    found: list[Finding] = []
    for cause, evidence in slowness(history):
        stopped = history.attempts and history.delivered_s == ENDLESS_S
        severity = Severity.CRITICAL if stopped else Severity.WARNING
        found.append(finding(cause, severity, *evidence, about=history.name))
    mean = (
        "no attempt"
        if history.mean_s is None
        else f"{times(history.attempts, 'attempt')}, {history.mean_s:.2f} s each"
    )
    late = max(history.waits.items(), key=lambda pair: pair[1].near_worst_s, default=None)
    slowest = f", slowest answer at {late[0]} with {late[1].near_worst_s:.2f} s" if late else ""
    return Check(f"send duration against timeout, {history.name}", mean + slowest, tuple(found))


def _reachable(symptoms: Symptoms) -> list[Check]:
    if isinstance(symptoms.probes, Unread):
        return [skipped("reachability", symptoms.probes.why, failed=symptoms.probes.missing)]
    checks = []
    for probed in symptoms.probes:
        cause, told = probe_cause(probed), told_of_probe(probed)
        found: tuple[Finding, ...] = ()
        if (
            cause is not None
            and cause in TIME_CAUSES
            and not _expected(probed.limit_s, symptoms, probed.probe.hop)
        ):
            found = (finding(cause, Severity.CRITICAL, told, about=probed.probe.hop),)
        checks.append(Check("reachability", told, found))
    return checks


def _expected(limit_s: float, symptoms: Symptoms, name: str) -> bool:
    """Whether the attempts show that this server is alive and merely takes longer than a probe waits."""
    if isinstance(symptoms.database, Unread) or isinstance(symptoms.database.attempts, Unread):
        return False
    mine = [history for history in histories(symptoms.database, symptoms) if history.name == name]
    return any(waits.near_worst_s >= limit_s for history in mine for waits in history.waits.values())
