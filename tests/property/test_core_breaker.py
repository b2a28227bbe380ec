"""The breaker: a state machine that is driven in every order with a clock of its own."""

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mailkeep.core.delivery import AttemptStatus, Certainty
from mailkeep.core.outcome import Outcome, Phase, Scope, Severity, Verdict, uniform
from mailkeep.dispatch.breaker import (
    FIRST_PROBE_S,
    HINTED_PROBE_S,
    LAST_PROBE_S,
    OPENING_FAILURES,
    SLOW_START,
    Breaker,
    BreakerState,
)


class Clock:
    """Monotonic seconds that only a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def outcome(severity: Severity, scope: Scope) -> Outcome:
    """Build the outcome of one attempt."""
    success = severity is Severity.SUCCESS
    return uniform(
        (0,),
        Verdict(severity, scope, "a_rule"),
        status=AttemptStatus.PROVIDER_ACCEPTED if success else AttemptStatus.TRANSPORT_FAILED,
        certainty=Certainty.DELIVERED if success else Certainty.NOT_DELIVERED,
        phase=Phase.DOT if success else Phase.CONNECT,
    )


WELL = outcome(Severity.SUCCESS, Scope.MESSAGE)
REFUSED = outcome(Severity.PERMANENT, Scope.RECIPIENT)
DEFERRED = outcome(Severity.TRANSIENT, Scope.REPUTATION)
OUT = outcome(Severity.TRANSIENT, Scope.NEXT_HOP)
LOGIN = outcome(Severity.TRANSIENT, Scope.CREDENTIAL)


class BreakerMachine(RuleBasedStateMachine):
    """Attempts begin where the breaker allows one, end in any way, and time passes."""

    @initialize(limit=st.integers(1, 12))
    def open_for_business(self, limit: int) -> None:
        self.clock = Clock()
        self.limit = limit
        self.breaker = Breaker(limit, self.clock)
        self.active = 0
        self.probes = 0
        self.outages_in_a_row = 0

    @rule()
    def begin(self) -> None:
        if not self.breaker.allowance(self.active):
            return
        probe = self.breaker.state is not BreakerState.CLOSED
        self.breaker.began()
        self.active += 1
        assert not probe or self.active == 1, "a probe goes alone"
        assert not probe or self.breaker.state is BreakerState.PROBING

    @precondition(lambda self: self.active)
    @rule(ending=st.sampled_from([WELL, REFUSED, DEFERRED]))
    def end_with_an_answer(self, ending: Outcome) -> None:
        before = self.breaker.state
        changed = self.breaker.ended(ending)
        self.active -= 1
        self.outages_in_a_row = 0
        assert self.breaker.state is BreakerState.CLOSED, "a hop that answers is not out"
        assert changed == (before is not BreakerState.CLOSED)
        if changed:
            assert self.breaker.allowance(0) == min(SLOW_START, self.limit)

    @precondition(lambda self: self.active)
    @rule(ending=st.sampled_from([OUT, LOGIN]))
    def end_in_an_outage(self, ending: Outcome) -> None:
        before = self.breaker.state
        changed = self.breaker.ended(ending)
        self.active -= 1
        self.outages_in_a_row += 1
        opens = ending is LOGIN or self.outages_in_a_row >= OPENING_FAILURES
        assert changed == (before is BreakerState.CLOSED and opens)
        assert (self.breaker.state is BreakerState.CLOSED) == (before is BreakerState.CLOSED and not opens)
        if changed:
            assert self.breaker.wait_s() == pytest.approx(FIRST_PROBE_S)

    @precondition(lambda self: self.active)
    @rule()
    def withdraw(self) -> None:
        before = self.breaker.state
        self.breaker.withdrawn()
        self.active -= 1
        expected = BreakerState.OPEN if before is BreakerState.PROBING else before
        assert self.breaker.state is expected

    @rule(seconds=st.sampled_from([0.0, 0.5, FIRST_PROBE_S, 10.0, LAST_PROBE_S]))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @invariant()
    def allows_no_more_than_the_limit(self) -> None:
        allowed = self.breaker.allowance(self.active)
        assert 0 <= allowed <= max(self.limit - self.active, 0)

    @invariant()
    def parks_while_it_is_open(self) -> None:
        waits = self.breaker.wait_s()
        assert 0 <= waits <= LAST_PROBE_S
        if waits or self.breaker.state is BreakerState.PROBING:
            assert self.breaker.allowance(self.active) == 0
        if waits:
            assert self.breaker.state is BreakerState.OPEN

    @invariant()
    def always_comes_back(self) -> None:
        """With nothing under way, the longest wait is all that stands before the next attempt."""
        if self.active == 0 and self.breaker.state is not BreakerState.PROBING:
            before_s, self.clock.now_s = self.clock.now_s, self.clock.now_s + LAST_PROBE_S
            assert self.breaker.allowance(0) >= 1
            self.clock.now_s = before_s

    @invariant()
    def never_probes_without_a_probe(self) -> None:
        assert self.breaker.state is not BreakerState.PROBING or self.active


TestBreaker = BreakerMachine.TestCase


def opened(clock: Clock, limit: int = 8) -> Breaker:
    """Return a breaker that three outages opened just now."""
    breaker = Breaker(limit, clock)
    for _ in range(OPENING_FAILURES):
        breaker.ended(OUT)
    return breaker


def test_three_outages_in_a_row_open_it():
    """One or two outages may be chance; an answer between them starts the count anew."""
    breaker = Breaker(8, Clock())
    for ending in (OUT, OUT, REFUSED, OUT, OUT):
        assert not breaker.ended(ending)
    assert breaker.ended(OUT)
    assert breaker.state is BreakerState.OPEN


def test_a_refused_login_opens_it_at_once():
    """Trying a refused credential again and again may lock the account."""
    assert Breaker(8, Clock()).ended(LOGIN)


def test_each_failed_probe_doubles_the_wait():
    """Probes come after 1, 2, 4 … seconds and never more than a minute apart."""
    clock = Clock()
    breaker = opened(clock)
    waits = []
    for _ in range(9):
        waits.append(breaker.wait_s())
        clock.now_s += breaker.wait_s()
        assert breaker.allowance(0) == 1
        breaker.began()
        breaker.ended(OUT)
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])


def test_a_new_outage_begins_with_the_shortest_wait():
    """What was learnt in one outage does not prolong the next."""
    clock = Clock()
    breaker = opened(clock)
    for ending in (OUT, WELL):
        clock.now_s += breaker.wait_s()
        breaker.began()
        breaker.ended(ending)
    for _ in range(OPENING_FAILURES):
        breaker.ended(OUT)
    assert breaker.wait_s() == pytest.approx(FIRST_PROBE_S)


def test_it_resumes_slowly():
    """After a probe two attempts may run, and two more with each success, up to the limit."""
    clock = Clock()
    breaker = opened(clock, limit=7)
    clock.now_s += breaker.wait_s()
    breaker.began()
    allowed = []
    for _ in range(5):
        breaker.ended(WELL)
        allowed.append(breaker.allowance(0))
    assert allowed == [2, 4, 6, 7, 7]


def test_a_server_that_is_out_is_given_the_time_it_asks_for():
    """A wait hint is respected upwards, up to ten minutes; a shorter one shortens nothing."""
    for hint_s, wait_s in ((0.1, FIRST_PROBE_S), (300.0, 300.0), (86_400.0, HINTED_PROBE_S)):
        clock = Clock()
        breaker = Breaker(4, clock)
        for _ in range(OPENING_FAILURES):
            breaker.began()
            breaker.ended(msgspec.structs.replace(OUT, wait_hint_s=hint_s))
        assert breaker.wait_s() == wait_s
