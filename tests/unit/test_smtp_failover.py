"""The order of a hop's addresses, and the pace of its messages, on a clock of the test's own."""

import random
from collections import Counter

from mailkeep.smtp.failover import BAD_S, Failover
from mailkeep.smtp.next_hop import HopAddress
from mailkeep.smtp.pace import WAIT_S, Pace, connections_at_pace

FIRST, SECOND, THIRD = HopAddress("a", 25), HopAddress("b", 25, 10), HopAddress("c", 25, 20)


class Clock:
    """Monotonic seconds that the test moves."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


def test_the_lowest_priority_comes_first_and_all_come():
    """Whatever the chance, an address of a higher number waits for those of a lower one."""
    failover = Failover((THIRD, FIRST, SECOND))
    assert all(failover.order() == [FIRST, SECOND, THIRD] for _ in range(50))


def test_one_that_failed_comes_last_for_a_bounded_time():
    """It is tried after the others, however high they are, and in its own place when the time is over or it worked."""
    clock = Clock()
    failover = Failover((FIRST, SECOND, THIRD), clock)
    failover.failed(FIRST)
    assert failover.order() == [SECOND, THIRD, FIRST]
    failover.failed(SECOND)
    assert failover.order() == [THIRD, FIRST, SECOND]
    failover.worked(SECOND)
    assert failover.order() == [SECOND, THIRD, FIRST]
    clock.now_s += BAD_S
    assert failover.order() == [FIRST, SECOND, THIRD]


def test_equal_priorities_are_shared_by_weight():
    """Three times the weight is three times as often first; chance is the only source of it."""
    light, heavy = HopAddress("a", 25, 0, 1), HopAddress("b", 25, 0, 3)
    failover = Failover((light, heavy), chance=random.Random(7).random)
    first = Counter(failover.order()[0].host for _ in range(4000))
    assert 2850 < first["b"] < 3150


def test_turns_come_evenly_and_one_after_the_other():
    """No two turns are closer than the rate allows, whatever waited before; an idle time is not saved up."""
    clock = Clock()
    pace = Pace(4, clock)
    assert [pace.take() for _ in range(4)] == [0, 0.25, 0.5, 0.75]
    clock.now_s += 100
    assert [pace.take() for _ in range(3)] == [0, 0.25, 0.5]
    clock.now_s += 0.5
    assert pace.take() == 0.25


def test_who_waits_for_a_turn_waits_a_bounded_time():
    """As many connections as the hop keeps: the last in the row waits no longer than told, or for the next turn."""
    for per_s in (0.01, 0.5, 3, 1000):
        pace = Pace(per_s, Clock())
        waits = [pace.take() for _ in range(connections_at_pace(10_000, per_s))]
        assert waits[-1] < WAIT_S
    assert connections_at_pace(7, None) == connections_at_pace(7, 1000) == 7
