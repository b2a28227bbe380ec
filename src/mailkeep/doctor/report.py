"""A report for people: each incident with its causes, evidence and next steps, then what was checked and what was not."""

from collections.abc import Callable, Iterator
from typing import Final

from mailkeep.doctor.causes import CAUSES, Cause, Severity
from mailkeep.doctor.examine import Report
from mailkeep.doctor.findings import Check, Finding

Paint = Callable[[str, Severity], str]
"""Colours a word by how bad it is, or not."""
Key = tuple[str, str, str]
"""Incident, cause and what is concerned."""
_INDENT: Final = " " * 14


def readable(report: Report, clean: Callable[[str], str], paint: Paint) -> Iterator[str]:
    """Yield the lines of a report; `clean` takes out of what servers and producers said whatever could steer a terminal."""
    explained: set[tuple[Cause, str | None]] = set()
    for diagnosis in report.diagnoses:
        yield f"{diagnosis.incident:<13} {paint(diagnosis.severity.upper(), diagnosis.severity)}"
        for found in diagnosis.findings:
            again = (found.cause, found.about) in explained
            explained.add((found.cause, found.about))
            yield f"  cause       {paint(found.cause, found.severity)}"
            yield from ([f"{_INDENT}the same as above"] if again else map(clean, _finding(found)))
        yield from map(clean, map(_check, diagnosis.checks))


def _finding(found: Finding) -> Iterator[str]:
    yield f"{_INDENT}{CAUSES[found.cause].meaning}"
    for line in found.evidence:
        yield f"  evidence    {line}"
    yield f"  next        {found.next_step}"


def _check(check: Check) -> str:
    if check.not_run is not None:
        return f"  {'NOT CHECKED' if check.failed else 'not asked  '} {check.name}: {check.not_run}"
    return f"  checked     {check.name}: {check.seen}"


def keys(report: Report) -> dict[Key, Finding]:
    """Return the findings that are more than `ok`, by what they are about: two reports are compared by that."""
    return {
        (diagnosis.incident, found.cause, found.about or ""): found
        for diagnosis in report.diagnoses
        for found in diagnosis.findings
        if found.severity is not Severity.OK
    }


def changes(before: Report, after: Report) -> Iterator[str]:
    """Yield one line for each finding that came (`+`), went (`-`) or changed how bad it is (`~`)."""
    old, new = keys(before), keys(after)
    for key, found in new.items():
        if key not in old:
            yield f"+ {_told(key)} {found.severity}; next: {found.next_step}"
        elif old[key].severity is not found.severity:
            yield f"~ {_told(key)} {old[key].severity} -> {found.severity}"
    for key in old.keys() - new.keys():
        yield f"- {_told(key)} is over"


def _told(key: Key) -> str:
    return " ".join(filter(None, key))
