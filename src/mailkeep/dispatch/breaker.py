"""A breaker per next hop: an outage parks the hop's mail instead of burning its ladders.

closed -> (outage-scoped failures) -> open -> (after a wait) -> probing with one message -> closed again with slow start,
or open for twice as long, or as long as the server asked for. Each replica keeps its own; nothing here is shared or stored.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final

from mailkeep.core.decide import OUTAGE_SCOPES
from mailkeep.core.outcome import Outcome, Scope, Severity

OPENING_FAILURES: Final = 3
"""Outage-scoped failures in a row that open the breaker; a refused credential opens it at once."""
FIRST_PROBE_S: Final = 1.0
LAST_PROBE_S: Final = 60.0
HINTED_PROBE_S: Final = 600.0
"""The longest wait that a server may ask for while it is out: a probe each ten minutes harms nobody, parked mail does."""
SLOW_START: Final = 2
"""Attempts allowed at once right after a probe succeeded; each success allows two more, up to the hop's limit."""


class BreakerState(StrEnum):
    """What the breaker lets through."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class Breaker:
    """The breaker of one next hop. `limit` is the most attempts at once; `clock` is monotonic seconds."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._failures = 0
        self._opened_until = 0.0
        self._probe_s = FIRST_PROBE_S
        self._allowed = limit
        self.state = BreakerState.CLOSED
        self.last_cause = ""

    def allowance(self, active: int) -> int:
        """Return how many more attempts may begin while `active` are under way."""
        match self.state:
            case BreakerState.CLOSED:
                return max(self._allowed - active, 0)
            case BreakerState.OPEN if self._clock() >= self._opened_until:
                return 1 if active == 0 else 0
            case _:
                return 0

    def probe_now(self) -> None:
        """Let the next probe begin at once: somebody knows that the hop is well again."""
        self._opened_until = min(self._opened_until, self._clock())

    def began(self) -> None:
        """Note that an attempt begins: on an open breaker that is the probe."""
        if self.state is BreakerState.OPEN:
            self.state = BreakerState.PROBING

    def withdrawn(self) -> None:
        """Note that an attempt ended without meeting the hop; a probe that did so decides nothing."""
        if self.state is BreakerState.PROBING:
            self.state = BreakerState.OPEN

    def ended(self, outcome: Outcome) -> bool:
        """Learn from an attempt's outcome. Returns True when the breaker changed its state by it."""
        if outcome.scope in OUTAGE_SCOPES and outcome.severity is not Severity.SUCCESS:
            return self._failed(outcome)
        return self._succeeded()

    def wait_s(self) -> float:
        """Return the seconds until the next probe may begin; 0 when attempts may."""
        return max(self._opened_until - self._clock(), 0.0) if self.state is BreakerState.OPEN else 0.0

    def _failed(self, outcome: Outcome) -> bool:
        self._failures += 1
        self.last_cause = outcome.reason
        if self.state is BreakerState.PROBING:
            self._probe_s = min(self._probe_s * 2, LAST_PROBE_S)
        elif self.state is BreakerState.CLOSED:
            if self._failures < OPENING_FAILURES and outcome.scope is not Scope.CREDENTIAL:
                return False
            self._probe_s = FIRST_PROBE_S
        else:
            return False
        opened = self.state is BreakerState.CLOSED
        self.state = BreakerState.OPEN
        self._opened_until = self._clock() + max(self._probe_s, min(outcome.wait_hint_s, HINTED_PROBE_S))
        return opened

    def _succeeded(self) -> bool:
        self._failures = 0
        if self.state is BreakerState.CLOSED:
            self._allowed = min(self._allowed + 2, self._limit)
            return False
        self.state = BreakerState.CLOSED
        self._allowed = min(SLOW_START, self._limit)
        return True
