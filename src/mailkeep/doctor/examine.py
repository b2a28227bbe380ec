"""From symptoms to diagnoses: one function an incident, each pure; and what they come to in exit codes."""

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from mailkeep.doctor.auth import auth
from mailkeep.doctor.backlog import backlog
from mailkeep.doctor.causes import Incident, Severity
from mailkeep.doctor.dead_letters import dead_letters
from mailkeep.doctor.findings import Check, Diagnosis, diagnosis, worst
from mailkeep.doctor.malformed import malformed
from mailkeep.doctor.suppressed import suppressed
from mailkeep.doctor.symptoms import Symptoms
from mailkeep.doctor.timeouts import timeouts

EXAMINATIONS: Final[dict[Incident, Callable[[Symptoms], list[Check]]]] = {
    Incident.BACKLOG: backlog,
    Incident.DEAD_LETTERS: dead_letters,
    Incident.SUPPRESSED: suppressed,
    Incident.AUTH: auth,
    Incident.TIMEOUTS: timeouts,
    Incident.MALFORMED: malformed,
}
EXIT_CODES: Final = {Severity.OK: 0, Severity.WARNING: 1, Severity.CRITICAL: 3}
"""2 is wrong usage."""


class Report(msgspec.Struct, frozen=True):
    """All that was examined; `severity` is the worst."""

    severity: Severity
    since_s: float
    diagnoses: tuple[Diagnosis, ...]


def examine(symptoms: Symptoms, incidents: Iterable[Incident] = Incident) -> Report:
    """Judge `symptoms` for each of `incidents`."""
    found = tuple(diagnosis(incident, EXAMINATIONS[incident](symptoms)) for incident in incidents)
    return Report(worst([one.severity for one in found]), symptoms.since_s, found)
