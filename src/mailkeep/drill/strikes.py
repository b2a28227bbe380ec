"""The schedule of the chaos drill: what is struck when, drawn from a seed. Pure.

One seed gives one schedule; what the strikes meet depends on the machine, so that a run is repeated in kind, not to the
millisecond.
"""

import random
from collections.abc import Collection
from enum import StrEnum
from typing import Final

import msgspec

SINK_MODES: Final = (
    "stall@rcpt",
    "stall@dot",
    "drop@mail",
    "drop@dot",
    "tempfail@rcpt",
    "tempfail@dot",
    "accept-then-drop",
    "accept-then-421",
    "slow@rcpt",
    "421@greeting",
    "defer",
)
"""Faults after which a mail can still be delivered: a refusal for good would end it."""


class StrikeKind(StrEnum):
    """What is struck."""

    KILL = "kill"  # a replica, SIGKILL
    STOP = "stop"  # a replica, SIGTERM
    FREEZE = "freeze"  # a replica, SIGSTOP for longer than its TTL, then SIGCONT
    POSTGRES = "postgres"  # SIGKILL, and started again
    REDIS = "redis"  # restarted
    SINK = "sink"  # its answers, for a while


class Strike(msgspec.Struct, frozen=True):
    """One strike, `at_s` seconds into the run. `lot` (0 to 1) chooses among the replicas that are up then."""

    at_s: float
    kind: StrikeKind
    lot: float = 0.0
    lasts_s: float = 0.0
    mode: str = ""


_GAPS_S: Final = {
    StrikeKind.STOP: (20.0, 0.3),
    StrikeKind.FREEZE: (40.0, 0.4),
    StrikeKind.POSTGRES: (120.0, 0.7),
    StrikeKind.REDIS: (90.0, 0.7),
    StrikeKind.SINK: (8.0, 0.2),
}
"""Mean seconds between strikes of a kind, and the longest share of a short run that this may be, so that each comes in it.

PostgreSQL seldom, since for a TTL afterwards nobody is declared lost."""


def schedule(
    seed: int,
    duration_s: float,
    *,
    kills_per_minute: float,
    ttl_s: float,
    kinds: Collection[StrikeKind] = tuple(StrikeKind),
) -> tuple[Strike, ...]:
    """Return the strikes of a run of `duration_s`, in order of time; those of one kind depend on which others there are."""
    lots = random.Random(seed)  # noqa: S311 - a schedule that can be drawn again, not a secret
    gaps = {StrikeKind.KILL: (60.0 / kills_per_minute, 0.2), **_GAPS_S}
    strikes: list[Strike] = []
    for kind, (mean_s, share) in gaps.items():
        if kind not in kinds:
            continue
        gap_s = min(mean_s, duration_s * share)
        at_s = gap_s * lots.uniform(0.5, 1.0)
        while at_s < duration_s:
            strikes.append(_strike(kind, at_s, lots, ttl_s))
            at_s += gap_s * lots.uniform(0.5, 1.5)
    return tuple(sorted(strikes, key=lambda strike: strike.at_s))


def _strike(kind: StrikeKind, at_s: float, lots: random.Random, ttl_s: float) -> Strike:
    match kind:
        case StrikeKind.KILL | StrikeKind.STOP:
            return Strike(at_s, kind, lots.random())
        case StrikeKind.FREEZE:
            return Strike(at_s, kind, lots.random(), ttl_s * lots.uniform(1.3, 1.8))
        case StrikeKind.SINK:
            return Strike(at_s, kind, lasts_s=lots.uniform(1.0, 5.0), mode=lots.choice(SINK_MODES))
        case _:
            return Strike(at_s, kind)
