"""Shares: whatever order places are taken in, no class starves another and no place is given twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailkeep.core.delivery import DeliveryClass
from mailkeep.dispatch.shares import PRIORITY, RESERVED, Shares

STEPS = st.lists(st.tuples(st.sampled_from(PRIORITY), st.booleans()), max_size=200)


def _reserved(total: int, delivery_class: DeliveryClass) -> int:
    return max(1, round(total * RESERVED[delivery_class]))


@given(st.integers(1, 200), STEPS)
def test_no_class_starves_and_no_place_is_sold_twice(total, steps):
    """Taking only where there is room: never more than `total`, and each class always gets its reserved share."""
    shares, taken = Shares(total), dict.fromkeys(PRIORITY, 0)
    for delivery_class, takes in steps:
        if takes and shares.room(delivery_class):
            shares.take(delivery_class)
            taken[delivery_class] += 1
        elif not takes and taken[delivery_class]:
            shares.give(delivery_class)
            taken[delivery_class] -= 1
        free = total - sum(taken.values())
        assert free >= 0
        for name in PRIORITY:
            assert shares.room(name) <= free
            if total > len(PRIORITY) and taken[name] < _reserved(total, name):
                assert shares.room(name) >= 1


@given(st.integers(1, 200), st.sampled_from(PRIORITY))
def test_the_room_told_can_be_taken(total, delivery_class):
    """`room` places can really be taken, one after the other, and then there is none left."""
    shares = Shares(total)
    for left in range(shares.room(delivery_class), 0, -1):
        assert shares.room(delivery_class) == left
        shares.take(delivery_class)
    assert shares.room(delivery_class) == 0


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 10])
@pytest.mark.parametrize("delivery_class", PRIORITY)
def test_even_the_smallest_pool_sends_every_class(total, delivery_class):
    """With one worker, too, each class gets a place while nothing else runs."""
    assert Shares(total).room(delivery_class) >= 1


def test_a_flood_of_one_class_leaves_the_others_their_share():
    """With 50 places a flood takes what is not reserved: login codes and relay keep their places."""
    shares = Shares(50)
    while shares.room(DeliveryClass.TRANSACTIONAL):
        shares.take(DeliveryClass.TRANSACTIONAL)
    assert shares.room(DeliveryClass.AUTH) == _reserved(50, DeliveryClass.AUTH)
    assert shares.room(DeliveryClass.RELAY) == _reserved(50, DeliveryClass.RELAY)


def test_what_was_given_back_can_be_taken_again():
    """Taking and giving leaves everything as it was."""
    shares = Shares(10)
    before = {name: shares.room(name) for name in PRIORITY}
    for name in PRIORITY:
        shares.take(name)
    for name in PRIORITY:
        shares.give(name)
    assert {name: shares.room(name) for name in PRIORITY} == before
