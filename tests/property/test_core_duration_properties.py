"""Durations survive being written and read; ladder waits stay within their jitter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailkeep.core.duration import format_duration, parse_duration
from mailkeep.core.ladder import JITTER, next_wait_s

CHANCES = st.floats(0, 1, exclude_max=True)
LADDERS = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=12).map(tuple)


@given(st.integers(0, 10**9))
def test_a_duration_survives_a_round_trip(milliseconds):
    """What is written is read back to the millisecond, the finest unit there is."""
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(
        milliseconds / 1000, abs=1e-4
    )


@given(LADDERS, st.integers(0, 15), CHANCES)
def test_a_wait_is_its_rung_give_or_take_a_tenth(ladder_s, rungs_used, chance):
    """Each wait lies within ±10 % of its rung; past the last rung there is none."""
    wait_s = next_wait_s(ladder_s, rungs_used, chance)
    if rungs_used >= len(ladder_s):
        assert wait_s is None
    else:
        rung_s = ladder_s[rungs_used]
        assert wait_s is not None
        assert rung_s * 0.9 * (1 - 1e-9) <= wait_s <= rung_s * 1.1 * (1 + 1e-9)


@given(LADDERS, CHANCES, CHANCES)
def test_jitter_spreads_over_the_whole_band(ladder_s, one, other):
    """The draw moves the wait evenly: two draws differ by their share of the band."""
    waits_s = [next_wait_s(ladder_s, 0, chance) for chance in (one, other)]
    assert waits_s[0] - waits_s[1] == pytest.approx(ladder_s[0] * 2 * JITTER * (one - other), abs=1e-6)
