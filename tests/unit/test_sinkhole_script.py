"""The sinkhole's script: a table of answers."""

import pytest

from mailkeep.core.outcome import Phase
from mailkeep.sinkhole.script import (
    HEALTHY,
    Action,
    Mode,
    ModeName,
    Then,
    UnknownModeError,
    answer,
    describe,
    draw,
    mode_of,
    parse_mode,
)
from mailkeep.sinkhole.sightings import MAX_SIGHTINGS, Sightings


@pytest.mark.parametrize(
    ("mode", "phase", "seen_count", "reply", "then", "takes"),
    [
        ("accept", Phase.RCPT, 0, "250 2.1.5 Ok", Then.KEEP, True),
        ("accept-log", Phase.DOT, 0, "250 2.0.0 Ok", Then.KEEP, True),
        ("defer", Phase.MAIL, 0, "250 2.1.0 Ok", Then.KEEP, True),
        ("defer", Phase.RCPT, 99, "421 4.3.2 Service temporarily unavailable", Then.KEEP, False),
        ("defer-3x", Phase.RCPT, 2, "421 4.3.2 Service temporarily unavailable", Then.KEEP, False),
        ("defer-3x", Phase.RCPT, 3, "250 2.1.5 Ok", Then.KEEP, True),
        ("bounce", Phase.RCPT, 0, "550 5.1.1 No such user here", Then.KEEP, False),
        ("greylist", Phase.RCPT, 0, "421 4.7.1 Greylisted, please try again later", Then.KEEP, False),
        ("greylist", Phase.RCPT, 1, "250 2.1.5 Ok", Then.KEEP, True),
        ("accept-then-drop", Phase.RCPT, 0, "250 2.1.5 Ok", Then.KEEP, True),
        ("accept-then-drop", Phase.DOT, 0, "", Then.CLOSE, True),
        ("accept-then-421", Phase.DOT, 0, "250 2.0.0 Ok", Then.LEAVE, True),
        ("tempfail@dot", Phase.DOT, 0, "451 4.3.0 Local error in processing", Then.KEEP, False),
        ("tempfail@dot", Phase.RCPT, 0, "250 2.1.5 Ok", Then.KEEP, True),
        ("tempfail", Phase.GREETING, 0, "421 4.3.2 Service not available", Then.CLOSE, False),
        ("permfail@auth", Phase.AUTH, 0, "535 5.7.8 Authentication credentials invalid", Then.KEEP, False),
        ("421@data", Phase.DATA, 0, "421 4.3.2 Service shutting down", Then.CLOSE, False),
        ("drop@dot", Phase.DOT, 0, "", Then.CLOSE, False),
        ("stall@mail", Phase.MAIL, 0, "", Then.STALL, False),
        ("stall@body", Phase.BODY, 0, "", Then.FREEZE, False),
        ("slow", Phase.QUIT, 0, "221 2.0.0 Bye", Then.CLOSE, True),
    ],
)
def test_answer(mode, phase, seen_count, reply, then, takes):
    """Each mode answers each phase as its row says, and as a healthy server where the row is silent."""
    action = answer(parse_mode(mode), phase, "ann@example.test", seen_count)
    assert (action.reply, action.then, action.takes) == (reply, then, takes)


@pytest.mark.parametrize("name", [ModeName.TEMPFAIL, ModeName.PERMFAIL, ModeName.SHUTDOWN, ModeName.DROP])
@pytest.mark.parametrize("phase", HEALTHY)
def test_faults_refuse_in_every_phase(name: ModeName, phase: Phase) -> None:
    """A failing fault takes nothing, and its reply has the class that its name promises."""
    action = answer(Mode(name, phase), phase)
    first_digit = {ModeName.TEMPFAIL: 4, ModeName.PERMFAIL: 5, ModeName.SHUTDOWN: 4}.get(name)
    assert not action.takes
    assert (action.code // 100 if action.code else None) == first_digit


@pytest.mark.parametrize("phase", HEALTHY)
def test_slow_says_what_a_healthy_server_says(phase: Phase) -> None:
    """`slow` changes the time of an answer and nothing else."""
    slow, healthy = answer(Mode(ModeName.SLOW), phase), HEALTHY[phase]
    assert slow.delay_s > 0
    assert (slow.reply, slow.then, slow.takes) == (healthy.reply, healthy.then, healthy.takes)


@pytest.mark.parametrize(
    "text",
    [
        "accept",
        "defer",
        "defer-3x",
        "greylist",
        "accept-then-drop",
        "421@data",
        "stall@dot",
        "slow",
        "drop",
        "cert-expired",
        "no-auth",
        "drop@tls",
        "tempfail@rcpt~25%",
        "bounce~1%",
        "slow~99%",
    ],
)
def test_a_mode_reads_as_it_is_written(text: str) -> None:
    """Parsing and writing a mode are inverse."""
    assert str(parse_mode(f" {text.upper()}\n")) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "off",
        "defer-0x",
        "defer-99999x",
        "bounce-2x",
        "accept@rcpt",
        "drop@connect",
        "drop@",
        "defer-3x@rcpt",
        "x" * 65,
        "bounce~0%",
        "bounce~100%",
        "bounce~5",
        "accept~5%",
        "greylist~5%",
        "defer-3x~5%",
        "cert-expired~5%",
        "cert-expired@tls",
    ],
)
def test_unknown_modes(text: str) -> None:
    """What is not in the table is refused, and the message lists what is."""
    with pytest.raises(UnknownModeError, match="accept-then-drop"):
        parse_mode(text)


@pytest.mark.parametrize(
    ("recipient", "in_force"),
    [
        ("defer-3x+anything@sinkhole.test", "defer-3x"),
        ("Bounce+A@Sinkhole.Test", "bounce"),
        ("accept+x@eu.sinkhole.test", "accept"),
        ("accept-then-drop+x@sinkhole.test", "accept-then-drop"),
        ("drop.dot+x@sinkhole.test", "drop@dot"),
        ("tempfail.rcpt~5%+x@sinkhole.test", "tempfail@rcpt~5%"),
        ("defer.rcpt+x@sinkhole.test", "greylist"),
        ("accept+x@example.test", "greylist"),
        ("accept@sinkhole.test", "greylist"),
        ("bob@plus+bounce.sinkhole.test", "greylist"),
        ("news+accept@sinkhole.test", "greylist"),
        ("", "greylist"),
    ],
)
def test_recipient_scripts(recipient: str, in_force: str) -> None:
    """A recipient's own script goes before the mode, and only at the sinkhole's domain."""
    assert str(mode_of(parse_mode("greylist"), recipient)) == in_force


def test_a_script_answers_for_its_recipient() -> None:
    """`defer-2x+label` defers twice and accepts then, though the mode is bounce."""
    replies = [
        answer(parse_mode("bounce"), Phase.RCPT, "defer-2x+a@sinkhole.test", seen).code for seen in range(4)
    ]
    assert replies == [421, 421, 250, 250]


def test_describe() -> None:
    """The line for a person names what differs from a healthy server."""
    assert describe(parse_mode("accept")) == "accepts everything"
    assert describe(parse_mode("accept-then-drop")) == "dot: no reply, then close"
    assert describe(parse_mode("slow@rcpt")) == "rcpt: 250 2.1.5 Ok after 1 s"
    assert describe(parse_mode("bounce")) == "rcpt: 550 5.1.1 No such user here"


def test_chance_strikes_below_its_share() -> None:
    """What is drawn below the share strikes, what is not is spared; without a share everything strikes."""
    mode = parse_mode("tempfail@rcpt~25%")
    assert [answer(mode, Phase.RCPT, drawn=drawn).code for drawn in (0.0, 0.2499, 0.25, 0.99)] == [
        450,
        450,
        250,
        250,
    ]
    assert answer(mode, Phase.MAIL).code == 250
    assert answer(parse_mode("tempfail@rcpt"), Phase.RCPT, drawn=0.99).code == 450
    assert describe(mode) == "rcpt: 450 4.2.0 Mailbox unavailable, 25 % of the time"


def test_draws_follow_from_their_words() -> None:
    """The same seed and words draw the same number; any other word draws another; the numbers fill the whole range."""
    assert draw(0, "a", "b") == draw(0, "a", "b")
    assert len({draw(0, "a"), draw(1, "a"), draw(0, "b"), draw(0, "a", "b"), draw(0, "ab")}) == 5
    drawn = sorted(draw(0, str(number)) for number in range(1000))
    assert 0 <= drawn[0] < 0.02
    assert 0.98 < drawn[-1] < 1
    assert 0.45 < drawn[500] < 0.55


def test_an_action_without_a_code_says_nothing() -> None:
    """Silence has no reply line."""
    assert Action(None, "unheard").reply == ""


def test_sightings_count_within_the_window() -> None:
    """A key is counted from its first sighting and is new again once the window is over."""
    sightings = Sightings()
    counts = [sightings.note(("a",), now_s, 30.0) for now_s in (0.0, 10.0, 30.0, 31.0, 32.0)]
    assert counts == [0, 1, 2, 0, 1]
    assert sightings.note(("b",), 32.0, 30.0) == 0


def test_sightings_are_bounded() -> None:
    """Beyond the maximum the oldest key is new again and the newest is not."""
    sightings = Sightings()
    for number in range(MAX_SIGHTINGS + 1):
        sightings.note((str(number),), 0.0, 1.0)
    assert sightings.note((str(MAX_SIGHTINGS),), 0.0, 1.0) == 1
    assert sightings.note(("0",), 0.0, 1.0) == 0
