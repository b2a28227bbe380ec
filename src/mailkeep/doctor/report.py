"""A report for people: each incident with its causes, evidence and next steps, then what was checked and what was not."""

import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from mailkeep.doctor.causes import CAUSES, Cause, Severity
from mailkeep.doctor.examine import Report
from mailkeep.doctor.findings import Check, Finding

Paint = Callable[[str, Severity], str]
"""Colours a word by how bad it is, or not."""
Key = tuple[str, str, str]
"""Incident, cause and what is concerned."""
_INDENT: Final = " " * 14


def readable(
    report: Report, clean: Callable[[str], str], paint: Paint, width: int | None = None
) -> Iterator[str]:
    """Yield the lines of a report; `clean` takes out of what servers and producers said whatever could steer a terminal.

    Longer lines than `width` are folded below their own words; None: they stay whole, for programs.
    """
    explained: set[tuple[Cause, str | None]] = set()
    for diagnosis in report.diagnoses:
        yield f"{diagnosis.incident:<13} {paint(diagnosis.severity.upper(), diagnosis.severity)}"
        told = _by_cause(diagnosis.findings)
        for key, findings in told.items():
            yield f"  cause       {paint(findings[0].cause, findings[0].severity)}"
            lines = [f"{_INDENT}the same as above"] if key in explained else _findings(findings)
            yield from _folded(map(clean, lines), width)
        explained |= told.keys()
        yield from _folded(map(clean, map(_check, diagnosis.checks)), width)


def _by_cause(findings: Iterable[Finding]) -> dict[tuple[Cause, str | None], list[Finding]]:
    """Return findings by cause and what is concerned: several checks of an incident may see the same. The worst first."""
    told: dict[tuple[Cause, str | None], list[Finding]] = {}
    for found in findings:
        told.setdefault((found.cause, found.about), []).append(found)
    return told


def _folded(lines: Iterable[str], width: int | None) -> Iterator[str]:
    for line in lines:
        if width is None or len(line) <= width:
            yield line
        else:
            yield from textwrap.wrap(
                line, width, subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False
            )


def _findings(findings: list[Finding]) -> Iterator[str]:
    yield f"{_INDENT}{CAUSES[findings[0].cause].meaning}"
    for line in dict.fromkeys(line for found in findings for line in found.evidence):
        yield f"  evidence    {line}"
    for step in dict.fromkeys(found.next_step for found in findings):
        yield f"  next        {step}"


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
