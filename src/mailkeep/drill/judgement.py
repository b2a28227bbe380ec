"""The judgement of a chaos run: what the ledger, the fault log and the record of replicas say together. Pure.

Copies beyond the first are told by their cause: the reply to a final dot was lost, or a replica was. Takeovers are
measured from the kill, by the instants that the database recorded; those during which PostgreSQL was away are
counted apart, since for a TTL after an outage nobody is declared lost.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from mailkeep.core.delivery import AttemptStatus, Certainty, DeliveryStatus, Guarantee
from mailkeep.drill.ledger import Broken, Delivery, Ledger, broken_rules, copies_of

ENDS: Final = frozenset({DeliveryStatus.SENT, DeliveryStatus.HELD, DeliveryStatus.DEAD_LETTER})
"""How a delivery may end in a chaos run: nothing is refused for good, expires or is cancelled."""

QUESTIONS: Final[dict[str, frozenset[str]]] = {
    "nothing lost": frozenset({"lost", "undelivered", "bounces"}),
    "copies explained": frozenset({"copied", "changed", "anomalies", "unasked"}),
    "at_most_once never doubled": frozenset({"doubled"}),
    "nothing stuck": frozenset({"ended", "held", "dead too early"}),
    "accounts agree": frozenset(
        {"two ids", "accounts", "history", "two endings", "attempts", "dead letters", "payloads"}
    ),
}
"""What is asked at the end -> the rules of the ledger that answer it; each rule stands in one of them."""


class Life(msgspec.Struct, frozen=True):
    """A replica as the database knew it: from when, and when the last of its claims was taken over. Unix seconds."""

    pid: int
    started_at: float
    taken_over_at: float | None
    taken_over_count: int = 0


class Span(msgspec.Struct, frozen=True):
    """From when to when. Unix seconds."""

    begins_at: float
    ends_at: float


class Takeovers(msgspec.Struct, frozen=True):
    """Seconds from the loss of a replica to the takeover of the last of its claims."""

    count: int
    p50_s: float | None
    p99_s: float | None
    longest_s: float | None


class Figures(msgspec.Struct, frozen=True):
    """The ledger in figures."""

    accepted: int
    ended: dict[str, int]
    copies: int
    attempts_unknown: int
    attempts_abandoned: int
    at_most_once: int
    copies_explained: dict[str, int]
    copies_unexplained: int
    lost: int
    at_most_once_doubled: int
    dead_letters: int
    takeovers: Takeovers
    takeovers_in_outage: Takeovers
    claims_left_by_stops: int


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest of `values` that at least `share` of them do not exceed; None if there are none."""
    if not values:
        return None
    return round(sorted(values)[max(math.ceil(len(values) * share) - 1, 0)], 2)


def figures(
    ledger: Ledger,
    broken: Sequence[Broken],
    lives: Sequence[Life],
    *,
    losses: Iterable[tuple[int, float]],
    stops: Iterable[tuple[int, float]],
    outages: Sequence[Span],
) -> Figures:
    """Return what to print. `losses` are kills and `stops` orderly ones, as (pid, Unix seconds)."""
    deliveries = ledger.deliveries.values()
    attempts = [attempt for delivery in deliveries for attempt in delivery.attempts]
    calm, troubled = _takeovers(lives, losses, outages)
    found = Counter(one.rule for one in broken)
    return Figures(
        accepted=sum(bool(submission.ids) for submission in ledger.submissions),
        ended=dict(Counter(delivery.status for delivery in deliveries)),
        copies=len(ledger.copies),
        attempts_unknown=sum(attempt.certainty == Certainty.UNKNOWN for attempt in attempts),
        attempts_abandoned=sum(attempt.status == AttemptStatus.ABANDONED for attempt in attempts),
        at_most_once=sum(delivery.guarantee == Guarantee.AT_MOST_ONCE for delivery in deliveries),
        copies_explained=_explained(ledger),
        copies_unexplained=found["copied"],
        lost=found["lost"] + found["undelivered"],
        at_most_once_doubled=found["doubled"],
        dead_letters=len(ledger.dead_letters),
        takeovers=_summed(calm),
        takeovers_in_outage=_summed(troubled),
        claims_left_by_stops=sum(
            life.taken_over_count for stop in stops if (life := _life(lives, *stop)) is not None
        ),
    )


def judged(ledger: Ledger) -> list[Broken]:
    """Return every rule that is broken, a second copy under at_most_once as `doubled`."""
    return [
        msgspec.structs.replace(one, rule="doubled")
        if one.rule == "copied" and ledger.deliveries[one.subject].guarantee == Guarantee.AT_MOST_ONCE
        else one
        for one in broken_rules(ledger)
    ]


def _explained(ledger: Ledger) -> dict[str, int]:
    """Count copies beyond a recipient's first by the unknown attempts that explain them."""
    counts = copies_of(ledger)
    explained: Counter[str] = Counter()
    for delivery in ledger.deliveries.values():
        extra = max(counts[delivery.id].values(), default=0) - 1
        causes = sorted(_cause(delivery, number) for number in range(len(delivery.attempts)))
        explained.update([cause for cause in causes if cause][: max(extra, 0)])
    return dict(explained)


def _cause(delivery: Delivery, number: int) -> str:
    attempt = delivery.attempts[number]
    if attempt.certainty != Certainty.UNKNOWN:
        return ""
    return "replica lost" if attempt.status == AttemptStatus.ABANDONED else "a reply lost"


def _takeovers(
    lives: Sequence[Life], losses: Iterable[tuple[int, float]], outages: Sequence[Span]
) -> tuple[list[float], list[float]]:
    calm: list[float] = []
    troubled: list[float] = []
    for pid, at in losses:
        life = _life(lives, pid, at)
        if life is None or life.taken_over_at is None:
            continue
        ended_at = life.taken_over_at
        met = any(outage.begins_at <= ended_at and at <= outage.ends_at for outage in outages)
        (troubled if met else calm).append(ended_at - at)
    return calm, troubled


def _life(lives: Sequence[Life], pid: int, at: float) -> Life | None:
    """Return the replica that the process `pid` was `at` that instant: numbers are reused, and so are processes."""
    before = [life for life in lives if life.pid == pid and life.started_at <= at]
    return max(before, key=lambda life: life.started_at, default=None)


def _summed(took_s: Sequence[float]) -> Takeovers:
    return Takeovers(len(took_s), percentile(took_s, 0.5), percentile(took_s, 0.99), percentile(took_s, 1.0))
