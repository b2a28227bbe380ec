"""What the attempts of the window and the probes of this moment say of each next hop. Pure; shared by the checks.

An incident that is over is no incident: a failure counts while nothing was delivered since, or where it keeps coming back.
"""

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Final

import msgspec

from mailkeep.core.delivery import AttemptStatus
from mailkeep.core.outcome import Phase, Scope, Severity
from mailkeep.doctor.causes import TIME_CAUSES, Cause, of_attempt
from mailkeep.doctor.findings import ago, times
from mailkeep.doctor.symptoms import Database, Probed, Symptoms, Unread
from mailkeep.smtp.next_hop import NextHop
from mailkeep.store.diagnosis import AttemptGroup, Dialog

RECURRING_SHARE: Final = 0.05
RECURRING_COUNT: Final = 3
"""From so many failures, and this share of all attempts, on it counts although others go through."""
NEAR_LIMIT_SHARE: Final = 0.5
"""Answers that usually take this share of their time: the limit is too short for that server."""
SLOW_PHASE_S: Final = 0.9
SLOW_PHASES: Final = 3
"""A server that is so late in so many phases delays every answer."""
SESSION_OVER: Final = "the whole session has lasted too long"
SILENT: Final = ""
ENDLESS_S: Final = float("inf")


class Waits(msgspec.Struct, frozen=True):
    """How long the answers of one phase took."""

    count: int
    median_s: float
    near_worst_s: float


class HopHistory:
    """The window as seen by one next hop; `hop` is None where this environment does not have it."""

    def __init__(
        self, name: str, hop: NextHop | None, groups: Iterable[AttemptGroup], dialogs: Iterable[Dialog]
    ) -> None:
        self.name = name
        self._hop = hop
        self.groups = tuple(group for group in groups if group.next_hop == name)
        self.waits = _waits(dialog for dialog in dialogs if dialog.next_hop == name)

    @property
    def attempts(self) -> int:
        """How many attempts ended."""
        return sum(group.count for group in self.groups)

    @property
    def delivered_s(self) -> float:
        """How long ago the last one delivered, endless if none did."""
        delivered = [group.last_s for group in self.groups if group.severity == Severity.SUCCESS]
        return min(delivered, default=ENDLESS_S)

    @property
    def mean_s(self) -> float | None:
        """How long an attempt takes, None if none ended."""
        return (
            sum(group.mean_s * group.count for group in self.groups) / self.attempts
            if self.attempts
            else None
        )

    def cause(self, group: AttemptGroup) -> Cause | None:
        """Return the cause that a group of attempts speaks of, timeouts told apart by how the server answers otherwise."""
        cause = of_attempt(group.status, group.phase, group.rule)
        if cause is not Cause.HOP_STALLS:
            return cause
        if SESSION_OVER in group.reply:
            return Cause.TARPIT
        waits, limit_s = self.waits.get(group.phase or ""), self.limit_s(group.phase)
        if waits and limit_s and waits.near_worst_s >= NEAR_LIMIT_SHARE * limit_s:
            return Cause.TIMEOUT_TOO_SHORT
        return cause

    def failing(self) -> Iterator[tuple[Cause, tuple[AttemptGroup, ...]]]:
        """Yield each cause with its attempts while the incident lasts, the latest first."""
        by_cause: dict[Cause, list[AttemptGroup]] = {}
        for group in sorted(self.groups, key=lambda group: group.last_s):
            cause = None if group.severity == Severity.SUCCESS else self.cause(group)
            if cause is not None:
                by_cause.setdefault(cause, []).append(group)
        for cause, groups in by_cause.items():
            if self.lasts(groups):
                yield cause, tuple(groups)

    def lasts(self, groups: Iterable[AttemptGroup]) -> bool:
        """Whether what `groups` tell of goes on: nothing was delivered since, or it keeps coming back."""
        groups = tuple(groups)
        count = sum(group.count for group in groups)
        recurring = count >= RECURRING_COUNT and count >= RECURRING_SHARE * self.attempts
        over = any(group.scope in (Scope.NEXT_HOP, Scope.CREDENTIAL) for group in groups)
        return min(group.last_s for group in groups) < self.delivered_s or (recurring and not over)

    def out_because(self) -> tuple[Cause, AttemptGroup] | None:
        """Return the latest outage and its cause, None if the window has none."""
        for group in sorted(self.groups, key=lambda group: group.last_s):
            cause = self.cause(group)
            if group.scope in (Scope.NEXT_HOP, Scope.CREDENTIAL) and cause is not None:
                return cause, group
        return None

    def limit_s(self, phase: str | None) -> float | None:
        """Return the limit of a phase, None where it is not known here."""
        return None if self._hop is None or not phase else self._hop.timers.by_phase().get(Phase(phase))

    def slow_phases(self) -> dict[str, Waits]:
        """Return the phases in which every answer is late."""
        return {phase: waits for phase, waits in self.waits.items() if waits.median_s >= SLOW_PHASE_S}

    def told(self, groups: Iterable[AttemptGroup]) -> tuple[str, ...]:
        """Return the evidence that `groups` are, one line each."""
        return tuple(
            f"{self.name}: {times(group.count, 'attempt')} {group.status} at {group.phase}, rule {group.rule},"
            f" the last {ago(group.last_s)}: {group.reply}"
            for group in groups
        )


def slowness(history: HopHistory) -> Iterator[tuple[Cause, tuple[str, ...]]]:
    """Yield each cause for which attempts of the window took too long, with its evidence."""
    named = set()
    for cause, groups in history.failing():
        if cause in TIME_CAUSES:
            named.add(cause)
            yield cause, (*history.told(groups), *_limits_told(history, groups))
    slow = history.slow_phases()
    if named or not slow:
        return
    if len(slow) >= SLOW_PHASES and history.attempts >= RECURRING_COUNT:
        late = ", ".join(f"{phase} {waits.median_s:.1f} s" for phase, waits in slow.items())
        yield Cause.TARPIT, (f"{history.name}: its answers usually take {late}",)
        return
    for phase, waits in slow.items():
        limit_s = history.limit_s(phase)
        if limit_s and waits.count >= RECURRING_COUNT and waits.near_worst_s >= NEAR_LIMIT_SHARE * limit_s:
            words = f"{history.name}: answers at {phase} take {waits.near_worst_s:.1f} s, and {limit_s:g} s is the limit"
            yield Cause.TIMEOUT_TOO_SHORT, (words,)


def _limits_told(history: HopHistory, groups: Iterable[AttemptGroup]) -> Iterator[str]:
    for phase in sorted({group.phase for group in groups if group.phase}):
        waits, limit_s = history.waits.get(phase), history.limit_s(phase)
        limit = "a limit that is not known here" if limit_s is None else f"a limit of {limit_s:g} s"
        answers = f"the answers that came took {waits.near_worst_s:.1f} s" if waits else "no answer came"
        yield f"{history.name} at {phase}: {limit}; {answers}"


def history_of(name: str, database: Database, symptoms: Symptoms) -> HopHistory:
    """Return the history of one next hop; empty where it could not be read."""
    attempts = () if isinstance(database.attempts, Unread) else database.attempts
    dialogs = () if isinstance(database.dialogs, Unread) else database.dialogs
    return HopHistory(name, symptoms.configured.hops.get(name), attempts, dialogs)


def histories(database: Database, symptoms: Symptoms) -> list[HopHistory]:
    """Return the history of each next hop that is configured here or was met by an attempt."""
    met = () if isinstance(database.attempts, Unread) else database.attempts
    names = {*symptoms.configured.hops, *(group.next_hop for group in met)}
    return [history_of(name, database, symptoms) for name in sorted(names)]


def probe_cause(probed: Probed) -> Cause | None:
    """Return the cause that a probe speaks of, None if mail could be sent there or the probe itself was cut short."""
    found = probed.probe
    if found.problem is None or found.status is None or SESSION_OVER in found.problem:
        return None
    return of_attempt(found.status, found.phase, found.rule)


def told_of_probe(probed: Probed) -> str:
    """Return what a probe found, in one line."""
    found = probed.probe
    if found.problem:
        silent = found.status == AttemptStatus.TIMED_OUT or probe_cause(probed) in TIME_CAUSES
        patience = f" (it had {probed.limit_s:g} s)" if silent else ""
        when = f"{ago(probed.old_s)}, not tried again since" if probed.old_s else "now"
        return f"{found.hop} {found.address} {when}: {found.problem}{patience}"
    login = {True: ", the login is accepted", False: ", the login is refused", None: ""}[found.logged_in]
    offers = ", ".join(found.capabilities) or "nothing"
    return f"{found.hop} {found.address} now: {found.tls or 'no TLS'}, offers {offers}{login}"


def _waits(dialogs: Iterable[Dialog]) -> dict[str, Waits]:
    """Return by phase how long answered steps took."""
    took: dict[str, list[float]] = {}
    for dialog in dialogs:
        before_ms = 0.0
        for step in dialog.steps:
            if step.reply != SILENT:
                took.setdefault(step.phase, []).append(max(step.at_ms - before_ms, 0.0) / 1000)
            before_ms = step.at_ms
    return {
        phase: Waits(len(waits), median(waits), sorted(waits)[int(0.9 * (len(waits) - 1))])
        for phase, waits in took.items()
    }
