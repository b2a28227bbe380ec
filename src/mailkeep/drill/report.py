"""What a drill reports: its steps in order, each with what was seen, for people, for programs and for CI (JUnit XML)."""

import re
from collections.abc import Callable
from typing import Final
from xml.etree import ElementTree as ET

import msgspec

from mailkeep.core.redact import mask_addresses

HELD: Final = "held"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"


_NOT_IN_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Step(msgspec.Struct, frozen=True):
    """One step: `result` is held, failed or skipped (an earlier one failed); `seen` is the evidence."""

    name: str
    result: str
    seen: str
    took_s: float


class Report(msgspec.Struct, frozen=True):
    """One drill. It succeeded only if every step held."""

    drill: str
    steps: tuple[Step, ...]

    @property
    def held(self) -> bool:
        """Whether every step held."""
        return all(step.result == HELD for step in self.steps)


Tell = Callable[[Step], None]
"""Takes each step as it ends."""


def readable(step: Step) -> str:
    """Return one line for a person."""
    mark = {HELD: "ok  ", FAILED: "FAIL", SKIPPED: "-   "}[step.result]
    return f"{mark} {step.name:<28} {step.took_s:6.1f} s  {mask_addresses(step.seen)}"


def _shown(step: Step) -> str:
    """Return what was seen, addresses masked, as XML can hold it: a command's output may have any character (XML 1.0, 2.2)."""
    return _NOT_IN_XML.sub(lambda found: ascii(found[0])[1:-1], mask_addresses(step.seen))


def junit(report: Report) -> bytes:
    """Return the report as JUnit XML, one test case a step."""
    failures = sum(step.result == FAILED for step in report.steps)
    suite = ET.Element(
        "testsuite",
        name=f"mailkeep drill {report.drill}",
        tests=str(len(report.steps)),
        failures=str(failures),
        errors="0",  # readers of the older kinds ask for it
        skipped=str(sum(step.result == SKIPPED for step in report.steps)),
        time=f"{sum(step.took_s for step in report.steps):.3f}",
    )
    for step in report.steps:
        case = ET.SubElement(
            suite, "testcase", classname=report.drill, name=step.name, time=f"{step.took_s:.3f}"
        )
        if step.result == FAILED:
            ET.SubElement(case, "failure", type="StepFailed", message=_shown(step))
        elif step.result == SKIPPED:
            ET.SubElement(case, "skipped")
        else:
            ET.SubElement(case, "system-out").text = _shown(step)
    document: bytes = ET.tostring(suite, encoding="utf-8", xml_declaration=True)
    return document
