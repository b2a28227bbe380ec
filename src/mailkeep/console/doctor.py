"""The page of the doctor: what is wrong, why, and what to do, for each incident, with what was looked at.

A look asks each next hop and takes up to ten seconds, so that one is shared by all who ask meanwhile and for a little while
after. It is taken by this process: what it can't reach, it says.
"""

import asyncio
import time
from datetime import UTC, datetime
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mailkeep.console.desk import Desk, asked
from mailkeep.core.command import CommandError, FailureCode
from mailkeep.core.duration import parse_duration
from mailkeep.doctor.causes import CAUSES, SYMPTOMS
from mailkeep.doctor.examine import Report, examine
from mailkeep.doctor.look import Doctor

SPANS: Final = ("15m", "1h", "6h", "1d")
USUAL_SPAN: Final = "1h"
KEPT_S: Final = 15.0
"""How long a report is shown before the doctor looks anew, however many people ask: each look connects to each next hop."""


class _Looked(msgspec.Struct, frozen=True):
    report: Report
    at: datetime
    until_s: float  # monotonic


class DoctorPages:
    """The page of the doctor."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        # One for each span, for good: a doctor remembers which login was refused, and does not try it again.
        self._doctors = {span: Doctor(desk.settings, parse_duration(span)) for span in SPANS}
        self._looked: dict[str, _Looked] = {}
        self._looking = asyncio.Lock()

    @property
    def routes(self) -> list[BaseRoute]:
        """What they answer."""
        return [Route("/doctor", self.examine)]

    async def examine(self, request: Request) -> Response:
        """Show what the doctor finds."""
        span, fault, looked = asked(request, "since") or USUAL_SPAN, None, None
        try:
            looked = await self._look(span)
        except CommandError as refused:
            fault = f"{refused.field}: {refused.message}"
        return self._desk.page(
            request,
            "doctor",
            status=400 if fault else 200,
            severity=looked and looked.report.severity,
            looked_at=looked and looked.at,
            diagnoses=_diagnoses(looked.report) if looked else (),
            span=span,
            spans=SPANS,
            fault=fault,
        )

    async def _look(self, span: str) -> _Looked:
        doctor = self._doctors.get(span)
        if doctor is None:
            raise CommandError(FailureCode.INVALID_FIELD, "since", f"must be one of: {', '.join(SPANS)}")
        async with self._looking:
            known = self._looked.get(span)
            if known is None or time.monotonic() >= known.until_s:
                report = examine(await doctor.look())
                known = _Looked(report, datetime.now(UTC), time.monotonic() + KEPT_S)
                self._looked[span] = known
            return known


def _diagnoses(report: Report) -> list[dict[str, object]]:
    return [
        {
            "incident": diagnosis.incident,
            "symptom": SYMPTOMS[diagnosis.incident],
            "severity": diagnosis.severity,
            "findings": [
                {
                    "cause": found.cause,
                    "severity": found.severity,
                    "about": found.about,
                    "meaning": CAUSES[found.cause].meaning,
                    "evidence": found.evidence,
                    "next_step": found.next_step,
                }
                for found in diagnosis.findings
            ],
            "checks": diagnosis.checks,
        }
        for diagnosis in report.diagnoses
    ]
