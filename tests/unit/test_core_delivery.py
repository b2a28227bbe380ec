"""The transitions table: what a delivery may become, and that nothing leaves a terminal status."""

from itertools import product

import pytest

from mailkeep.core.delivery import (
    BIRTH,
    TERMINAL,
    TRANSITIONS,
    WAITING,
    AttemptStatus,
    DeliveryStatus,
    IllegalTransitionError,
    check_transition,
)


def _reached(starts: frozenset[DeliveryStatus]) -> set[DeliveryStatus]:
    reached = set(starts)
    while fresh := {after for before, after in TRANSITIONS if before in reached} - reached:
        reached |= fresh
    return reached


def test_the_statuses_are_those_of_the_contract():
    """Statuses are stored and answered by name, so each name is part of the contract."""
    assert {str(status) for status in DeliveryStatus} == {
        "queued",
        "rendered",
        "sending",
        "held",
        "sent",
        "suppressed",
        "failed",
        "dead_letter",
        "expired",
        "cancelled",
    }
    assert {str(status) for status in AttemptStatus} == {
        "in_progress",
        "provider_accepted",
        "provider_rejected",
        "transport_failed",
        "timed_out",
        "render_failed",
        "abandoned",
    }


def test_waiting_terminal_sending_and_held_are_all_there_is():
    """Each status is exactly one of: waiting, claimed, held by a person, terminal."""
    groups = [WAITING, TERMINAL, {DeliveryStatus.SENDING}, {DeliveryStatus.HELD}]
    assert sorted(status for group in groups for status in group) == sorted(DeliveryStatus)


def test_every_status_is_reachable():
    """From the statuses intake creates, the table leads to each status there is."""
    assert _reached(BIRTH) == set(DeliveryStatus)


def test_every_living_status_can_end():
    """No status that is not terminal is a trap: a terminal one can be reached from it."""
    for status in set(DeliveryStatus) - TERMINAL:
        assert _reached(frozenset({status})) & TERMINAL, status


def test_nothing_leaves_a_terminal_status():
    """The table has no move out of a terminal status."""
    assert not {before for before, _ in TRANSITIONS} & TERMINAL


def test_no_move_stands_still():
    """A status never moves to itself: each row of the table is a change."""
    assert all(before != after for before, after in TRANSITIONS)


@pytest.mark.parametrize(("before", "after"), tuple(product(DeliveryStatus, repeat=2)))
def test_exactly_the_pairs_of_the_table_pass(before, after):
    """A pair of the table passes; any other raises and names both statuses."""
    if (before, after) in TRANSITIONS:
        check_transition(before, after)
        return
    with pytest.raises(IllegalTransitionError, match=f"{before} -> {after}"):
        check_transition(before, after)
