"""What a benchmark of a deployment found. Pure: instants in, rates and percentiles out.

Rates and the way from acceptance to the sinkhole are of PostgreSQL's one clock, so that no clock of another machine comes in:
a mail is accepted at its commit, and sent when its result was recorded, which is a little after the sinkhole took it.
"""

import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from mailkeep.core.delivery import DeliveryStatus

MIN_SPAN_S: Final = 0.001
"""Of a rate: what one commit took at once has no duration."""


class Settled(msgspec.Struct, frozen=True):
    """One mail of the benchmark that has ended."""

    accepted_at: datetime
    ended_at: datetime
    status: DeliveryStatus


class Percentiles(msgspec.Struct, frozen=True):
    """Of times, in milliseconds."""

    p50_ms: float
    p99_ms: float


class Cpu(msgspec.Struct, frozen=True):
    """CPU of processes on this machine: of `replicas` of the service (PostgreSQL is not among them), and of the benchmark."""

    replicas: int
    service_ms_per_mail: float | None
    benchmark_ms_per_mail: float


class Findings(msgspec.Struct, frozen=True):
    """What was found. `requests` is of HTTP only; `not_sent` counts by status, `cancelled` those that the benchmark gave up."""

    via: str
    accepted: int
    refused: int
    sent: int
    not_sent: dict[str, int]
    accepted_per_s: float | None
    sent_per_s: float | None
    requests: Percentiles | None
    accepted_to_sent: Percentiles | None
    cpu: Cpu
    interrupted: bool = False

    @property
    def held(self) -> bool:
        """Whether every mail was taken, and sent."""
        return not self.refused and not self.not_sent and self.sent == self.accepted > 0


def percentiles(times_ms: Sequence[float]) -> Percentiles | None:
    """Return the percentiles by nearest rank; None of nothing."""
    if not times_ms:
        return None
    ordered = sorted(times_ms)
    return Percentiles(*(ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.99)))


def findings(
    *,
    via: str,
    accepted: int,
    refused: int,
    settled: Sequence[Settled],
    request_ms: Sequence[float],
    cpu: Cpu,
    interrupted: bool = False,
) -> Findings:
    """Put together what was seen of `accepted` mails."""
    sent = [mail for mail in settled if mail.status is DeliveryStatus.SENT]
    other = Counter(mail.status.value for mail in settled if mail.status is not DeliveryStatus.SENT)
    if missing := accepted - len(settled):
        other["unsettled"] = missing
    first = min((mail.accepted_at for mail in settled), default=None)
    last_accepted = max((mail.accepted_at for mail in settled), default=None)
    last_sent = max((mail.ended_at for mail in sent), default=None)
    return Findings(
        via=via,
        accepted=accepted,
        refused=refused,
        sent=len(sent),
        not_sent=dict(other),
        accepted_per_s=_rate(len(settled), first, last_accepted),
        sent_per_s=_rate(len(sent), first, last_sent),
        requests=percentiles(request_ms),
        accepted_to_sent=percentiles(
            [(mail.ended_at - mail.accepted_at).total_seconds() * 1000 for mail in sent]
        ),
        cpu=cpu,
        interrupted=interrupted,
    )


def _rate(count: int, begin: datetime | None, end: datetime | None) -> float | None:
    if begin is None or end is None:
        return None
    return count / max((end - begin).total_seconds(), MIN_SPAN_S)
