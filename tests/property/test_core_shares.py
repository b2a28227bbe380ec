"""Shares: whatever order places are taken in, no class starves another and no place is given twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailkeep.core.delivery import DeliveryClass
from mailkeep.dispatch.shares import PRIORITY, RESERVED, Shares

HOP = "hop"
STEPS = st.lists(st.tuples(st.sampled_from(PRIORITY), st.booleans()), max_size=200)


def _reserved(total: int, delivery_class: DeliveryClass) -> int:
    return max(1, round(total * RESERVED[delivery_class]))


@given(st.integers(1, 200), STEPS, st.booleans())
def test_no_class_starves_and_no_place_is_sold_twice(total, steps, several_hops):
    """Taking only where there is room: never more than `total`, and each class always gets its reserved share."""
    shares, taken = Shares(total, several_hops=several_hops), dict.fromkeys(PRIORITY, 0)
    for delivery_class, takes in steps:
        if takes and shares.room(delivery_class, HOP):
            shares.take(delivery_class, HOP)
            taken[delivery_class] += 1
        elif not takes and taken[delivery_class]:
            shares.give(delivery_class, HOP)
            taken[delivery_class] -= 1
        free = total - sum(taken.values())
        assert free >= 0
        for name in PRIORITY:
            assert shares.room(name, HOP) <= free
            if total > len(PRIORITY) and taken[name] < _reserved(total, name):
                assert shares.room(name, HOP) >= 1


@given(st.integers(1, 200), st.sampled_from(PRIORITY), st.booleans())
def test_the_room_told_can_be_taken(total, delivery_class, several_hops):
    """`room` places can really be taken, one after the other, and then there is none left."""
    shares = Shares(total, several_hops=several_hops)
    for left in range(shares.room(delivery_class, HOP), 0, -1):
        assert shares.room(delivery_class, HOP) == left
        shares.take(delivery_class, HOP)
    assert shares.room(delivery_class, HOP) == 0


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 10])
@pytest.mark.parametrize("delivery_class", PRIORITY)
def test_even_the_smallest_pool_sends_every_class(total, delivery_class):
    """With one worker, too, each class gets a place while nothing else runs."""
    assert Shares(total).room(delivery_class, HOP) >= 1


def test_a_flood_of_one_class_leaves_the_others_their_share():
    """With 50 places a flood takes what is not reserved: login codes and relay keep their places."""
    shares = Shares(50)
    while shares.room(DeliveryClass.TRANSACTIONAL, HOP):
        shares.take(DeliveryClass.TRANSACTIONAL, HOP)
    assert shares.room(DeliveryClass.AUTH, HOP) == _reserved(50, DeliveryClass.AUTH)
    assert shares.room(DeliveryClass.RELAY, HOP) == _reserved(50, DeliveryClass.RELAY)


@given(st.integers(10, 400), st.integers(1, 5))
def test_stalled_hops_leave_places_to_another(total, stalled):
    """However much waits for hops that give nothing back, the next hop still finds places, and one hop alone at least a quarter."""
    shares = Shares(total, several_hops=True)
    for number in range(stalled):
        while room := shares.room(DeliveryClass.TRANSACTIONAL, f"stalled {number}"):
            for _ in range(room):
                shares.take(DeliveryClass.TRANSACTIONAL, f"stalled {number}")
    assert shares.free >= 1
    assert shares.room(DeliveryClass.AUTH, "good") >= 1
    assert stalled > 1 or shares.free >= total // 4


@given(st.integers(2, 400), st.sampled_from(PRIORITY))
def test_a_stalled_hop_leaves_a_place_to_the_same_class(total, delivery_class):
    """However few places there are: what is kept for other classes is not all that the other hops are left with."""
    shares = Shares(total, several_hops=True)
    while shares.room(delivery_class, "stalled"):
        shares.take(delivery_class, "stalled")
    assert shares.room(delivery_class, "good") >= 1


def test_what_was_given_back_can_be_taken_again():
    """Taking and giving leaves everything as it was."""
    shares = Shares(10)
    before = {name: shares.room(name, HOP) for name in PRIORITY}
    for name in PRIORITY:
        shares.take(name, HOP)
    for name in PRIORITY:
        shares.give(name, HOP)
    assert {name: shares.room(name, HOP) for name in PRIORITY} == before


@given(total=st.integers(10, 400), beyond=st.integers(0, 400), several=st.booleans())
def test_a_class_keeps_its_own_when_others_took_more_than_there_is(total, beyond, several):
    """Claims under way and births meanwhile may overshoot; a login code is born claimed all the same."""
    shares = Shares(total, several_hops=several)
    for _ in range(total + beyond):
        shares.take(DeliveryClass.TRANSACTIONAL, "a")
    own = _reserved(total, DeliveryClass.AUTH)
    for left in range(own, 0, -1):
        assert shares.room(DeliveryClass.AUTH, "a") == left
        shares.take(DeliveryClass.AUTH, "a")
    assert shares.room(DeliveryClass.AUTH, "a") == shares.room(DeliveryClass.TRANSACTIONAL, "a") == 0
