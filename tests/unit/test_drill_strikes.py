"""The schedule and the judgement of the chaos drill: what they say follows from what they are given."""

import pytest

from mailkeep.drill.judgement import QUESTIONS, Life, Span, Takeovers, figures, percentile
from mailkeep.drill.ledger import Ledger
from mailkeep.drill.strikes import StrikeKind, schedule

NOTHING = Ledger(submissions=(), deliveries={}, keys={}, payloads=frozenset(), copies=())


def drawn(seed, duration_s=1800.0, **options):
    """Return the schedule of a seed."""
    return schedule(seed, duration_s, kills_per_minute=20, ttl_s=10.0, **options)


def test_a_seed_is_a_schedule():
    """The same seed draws the same strikes in order of time, another one others."""
    assert drawn(1) == drawn(1) != drawn(2)
    assert [strike.at_s for strike in drawn(1)] == sorted(strike.at_s for strike in drawn(1))


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_comes_in_a_short_run(seed):
    """A run of 15 seconds has a strike of each kind, and a freeze is longer than the TTL."""
    strikes = drawn(seed, 15.0)
    assert {strike.kind for strike in strikes} == set(StrikeKind)
    assert all(strike.lasts_s > 10.0 for strike in strikes if strike.kind is StrikeKind.FREEZE)


def test_kills_come_as_often_as_asked():
    """Twenty a minute are some six hundred in half an hour; other kinds may be left out."""
    kills = drawn(3, kinds=(StrikeKind.KILL,))
    assert {strike.kind for strike in kills} == {StrikeKind.KILL}
    assert 540 <= len(kills) <= 660


def test_a_takeover_counts_from_the_kill():
    """By the replica that the process was then; in an outage apart; who had nothing in its hands counts not."""
    lives = [Life(7, 0.0, None), Life(7, 50.0, 112.0, 3), Life(8, 60.0, 140.0, 1), Life(9, 60.0, None)]
    found = figures(
        NOTHING,
        [],
        lives,
        losses=[(7, 100.0), (8, 120.0), (9, 100.0)],
        stops=[(7, 40.0), (8, 130.0)],
        outages=[Span(125.0, 135.0)],
    )
    assert found.takeovers == Takeovers(1, 12.0, 12.0, 12.0)
    assert found.takeovers_in_outage == Takeovers(1, 20.0, 20.0, 20.0)
    assert found.claims_left_by_stops == 1


def test_percentiles_are_values():
    """The nearest rank, no mean of two; none of nothing."""
    assert percentile([], 0.5) is None
    assert [percentile(list(range(1, 101)), share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]


def test_a_rule_answers_one_question():
    """No rule of the ledger is asked for twice."""
    rules = [rule for answers in QUESTIONS.values() for rule in answers]
    assert len(rules) == len(set(rules))
