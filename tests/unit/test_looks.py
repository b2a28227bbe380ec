"""How often the scheduler and the gauges look at the queue."""

from types import SimpleNamespace

import pytest

from mailkeep.core.delivery import DeliveryClass
from mailkeep.dispatch.gauges import INTERVAL_S, LONGEST_S, REST, pause_s
from mailkeep.dispatch.scheduler import may_be_more

AUTH, RELAY = DeliveryClass.AUTH, DeliveryClass.RELAY


@pytest.mark.parametrize(
    ("claimed", "at_most", "more"),
    [
        ([], 16, False),  # nothing was due, or others hold it: the next look is for a pause to decide
        ([("a", AUTH)], 16, False),
        ([("a", AUTH), ("a", RELAY), ("b", RELAY)], 16, False),
        ([("a", AUTH), ("a", RELAY), ("b", RELAY)], 3, True),  # as many as were asked for in all
        ([("a", RELAY), ("a", RELAY)], 16, True),  # as many as one kind has room for
        ([("b", RELAY), ("b", RELAY)], 16, False),
    ],
)
def test_the_scheduler_looks_again_at_once_after_a_look_that_was_full(claimed, at_most, more):
    """A look that was not full found all there was."""
    wanted = [("a", AUTH, 2), ("a", RELAY, 2), ("b", RELAY, 3)]
    claims = [SimpleNamespace(next_hop=hop, delivery_class=name) for hop, name in claimed]
    assert may_be_more(claims, wanted, at_most) is more


@pytest.mark.parametrize(
    ("took_s", "rests_s"),
    [(0.0, INTERVAL_S), (INTERVAL_S / REST, INTERVAL_S), (0.3, 0.3 * REST), (5.0, LONGEST_S)],
)
def test_a_look_that_took_long_is_taken_more_rarely(took_s, rests_s):
    """A hundredth of a process's time at most goes into counting; and no figure is older than a minute."""
    assert pause_s(took_s) == pytest.approx(rests_s)
