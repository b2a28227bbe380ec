"""Durations and ladders as people write them."""

import pytest

from mailkeep.core.duration import format_duration, parse_duration, parse_ladder


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("5m", 300.0),
        ("7d", 604800.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("1d2h3m4s5ms", 93784.005),
        ("  10s ", 10.0),
        ("0s", 0.0),
    ],
)
def test_reads_what_people_write(text, seconds):
    """Numbers with units, alone or in a row, are summed to seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "5", "s", "-5s", "5 m", "5m 3s", "1e3s", "inf", "nan", "5x", "5mm", "5s,", "1.s", ".5s", "٣s"],
)
def test_refuses_anything_else(text):
    """What is not a duration raises; nothing is guessed."""
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(90.0, "1m30s"), (0.25, "250ms"), (0.0, "0ms"), (604800.0, "7d"), (3600.0, "1h")]
)
def test_writes_the_shortest_form(seconds, text):
    """A duration is shown in the units people use."""
    assert format_duration(seconds) == text


def test_reads_the_ladders_of_the_contract():
    """The default ladders of contract section 2 mean what they say."""
    assert parse_ladder("10s, 30s, 90s, 4m, 8m") == (10, 30, 90, 240, 480)
    relay_s = parse_ladder("30m, 1h, 2h, 4h, 8h, 16h, 24h, 24h, 24h, 16h")
    assert sum(relay_s) == pytest.approx(5 * 86400, rel=0.01)


@pytest.mark.parametrize("text", ["", "10s,", ",10s", "10s 30s", "0s", "10s, 0s, 30s", "ten"])
def test_refuses_a_ladder_with_a_broken_rung(text):
    """An empty, zero or malformed rung makes the whole ladder invalid."""
    with pytest.raises(ValueError, match="duration|longer than zero"):
        parse_ladder(text)
