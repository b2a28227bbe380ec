"""Why a next hop does not let us log in, and why TLS, which a login needs, fails. Pure."""

from typing import Final

from mailkeep.core.outcome import Phase
from mailkeep.doctor.backlog import is_about_login
from mailkeep.doctor.causes import AUTH_CAUSES, Cause, Severity
from mailkeep.doctor.findings import Check, Finding, finding, skipped, times
from mailkeep.doctor.hop_history import histories, probe_cause, told_of_probe
from mailkeep.doctor.symptoms import Symptoms, Unread

BEFORE_MAIL: Final = (Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.TLS, Phase.AUTH)
"""How far a probe comes: of what a server says to MAIL it proves nothing."""


def auth(symptoms: Symptoms) -> list[Check]:
    """Run the checks of logins."""
    return [credentials(symptoms), *probes(symptoms), attempts(symptoms)]


def credentials(symptoms: Symptoms) -> Check:
    """Whether credentials are configured in pairs."""
    problems = [one for one in symptoms.configured.problems if is_about_login(one.name, one.message)]
    logins = sum(hop.username is not None for hop in symptoms.configured.hops.values())
    hops = len(symptoms.configured.hops)
    found = (
        (finding(Cause.CREDENTIALS_NOT_PAIRED, Severity.CRITICAL, *map(str, problems)),) if problems else ()
    )
    seen = "not in pairs" if problems else f"{times(logins, 'login')} for {times(hops, 'next hop')}"
    return Check("credentials in pairs", seen, found)


def probes(symptoms: Symptoms) -> list[Check]:
    """Tell what each address offers now, and whether it takes the login."""
    if isinstance(symptoms.probes, Unread):
        return [skipped("STARTTLS and logins offered", symptoms.probes.why, failed=symptoms.probes.missing)]
    checks = []
    for probed in symptoms.probes:
        name, cause = "STARTTLS and logins offered", probe_cause(probed)
        if cause is not None and cause not in AUTH_CAUSES:
            checks.append(skipped(name, f"it was not reached: {told_of_probe(probed)}"))
            continue
        told = told_of_probe(probed)
        found = () if cause is None else (finding(cause, Severity.CRITICAL, told, about=probed.probe.hop),)
        checks.append(Check(name, told, found))
    return checks


def attempts(symptoms: Symptoms) -> Check:
    """Whether attempts failed at the login or at TLS, and go on to."""
    database = symptoms.database
    if isinstance(database, Unread):
        down = finding(Cause.DATABASE_UNREACHABLE, Severity.CRITICAL, database.why)
        return Check("attempts", database.why, (down,))
    if isinstance(database.attempts, Unread):
        return skipped("attempts", database.attempts.why, failed=database.attempts.missing)
    found: list[Finding] = []
    for history in histories(database, symptoms):
        for cause, groups in history.failing():
            if cause in AUTH_CAUSES:
                reached = all(group.phase in BEFORE_MAIL for group in groups)
                now_well = reached and _works_now(history.name, symptoms)
                severity = Severity.WARNING if now_well else Severity.CRITICAL
                well = (
                    "it works now; parked mail goes on with the next probe of a replica" if now_well else ""
                )
                found.append(finding(cause, severity, *history.told(groups), well, about=history.name))
    total = sum(group.count for group in database.attempts)
    return Check("attempts", f"{times(total, 'attempt')} in the window", tuple(found))


def _works_now(name: str, symptoms: Symptoms) -> bool:
    if isinstance(symptoms.probes, Unread):
        return False
    mine = [probed for probed in symptoms.probes if probed.probe.hop == name]
    return bool(mine) and all(probed.probe.problem is None for probed in mine)
