"""The right of way: what can wait steps aside for login codes, for a bounded time and never for good."""

import asyncio

import pytest

from mailkeep.dispatch import right_of_way
from mailkeep.dispatch.right_of_way import RightOfWay


class Clock:
    """A clock that stands until it is moved."""

    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    """Return a clock."""
    return Clock()


async def test_a_login_code_holds_the_rest_until_it_has_passed(clock):
    """Who gives way goes on when the last code on its way is through, and is told so."""
    way, cleared = RightOfWay(clock), []
    way.on_clear = lambda: cleared.append(way.is_clear)
    with way.passing():
        with way.passing():
            assert not way.is_clear
            waiting = asyncio.create_task(way.give_way())
            await asyncio.sleep(0.001)
        assert not way.is_clear
        assert not waiting.done()
    assert way.is_clear
    await waiting
    assert cleared == [True]


async def test_nobody_is_held_for_longer_than_the_bound(monkeypatch, clock):
    """A code whose next hop stalls lets the rest go on."""
    monkeypatch.setattr(right_of_way, "HOLD_S", 0.01)
    way = RightOfWay(clock)
    with way.passing():
        async with asyncio.timeout(5):
            await way.give_way()
        assert way.is_clear


async def test_after_a_hold_the_rest_has_a_time_for_itself(clock):
    """A flood of codes takes three quarters of the time at most."""
    way = RightOfWay(clock)
    with way.passing():
        clock.now_s += 0.03
    clock.now_s += 0.009
    with way.passing():
        assert way.is_clear
    clock.now_s += 0.002
    with way.passing():
        assert not way.is_clear


async def test_where_the_way_is_clear_others_get_a_turn_all_the_same(clock):
    """Giving way is one turn of the event loop."""
    way, seen = RightOfWay(clock), []
    asyncio.get_running_loop().call_soon(seen.append, 1)
    await way.give_way()
    assert seen == [1]


async def test_letting_pass_costs_nothing_where_nobody_passes(clock):
    """What comes one by one is not put behind the others for it."""
    way, seen = RightOfWay(clock), []
    asyncio.get_running_loop().call_soon(seen.append, 1)
    await way.let_pass()
    assert not seen
    with way.passing():
        waiting = asyncio.create_task(way.let_pass())
        await asyncio.sleep(0.001)
        assert not waiting.done()
    await waiting


async def test_while_codes_are_about_the_rest_goes_one_at_a_time(clock):
    """A statement waits for the one before it for a second after a login code, and not before or later."""
    way, running = RightOfWay(clock), []

    async def statement(release):
        async with way.in_turn():
            running.append(release)
            await release.wait()

    async def begun(count):
        """Begin `count` statements at once, and return how many ran side by side."""
        releases = [asyncio.Event() for _ in range(count)]
        statements = [asyncio.create_task(statement(release)) for release in releases]
        await asyncio.sleep(0.01)
        beside = len(running)
        for release in releases:
            release.set()
        await asyncio.gather(*statements)
        assert len(running) == count
        running.clear()
        return beside

    assert await begun(3) == 3
    with way.passing():
        pass
    assert way.codes_are_about
    assert await begun(3) == 1
    clock.now_s += right_of_way.ABOUT_S
    assert not way.codes_are_about
    assert await begun(3) == 3


async def test_while_codes_are_about_statements_are_short(clock):
    """For a second after a login code; what is shorter anyway stays as it is."""
    way = RightOfWay(clock)
    assert way.rows_at_most(64) == 64
    with way.passing():
        assert way.rows_at_most(64) == right_of_way.ROWS_AMONG_CODES
    assert [way.rows_at_most(64), way.rows_at_most(3)] == [right_of_way.ROWS_AMONG_CODES, 3]
    clock.now_s += right_of_way.ABOUT_S
    assert way.rows_at_most(64) == 64


async def test_a_statement_waits_for_a_code_also_when_its_turn_has_come(clock):
    """A turn is no right of way."""
    way, seen = RightOfWay(clock), []

    async def statement():
        async with way.in_turn():
            seen.append(way.is_clear)

    with way.passing():
        waiting = asyncio.create_task(statement())
        await asyncio.sleep(0.01)
        assert not seen
    await waiting
    assert seen == [True]


async def test_a_statement_that_hangs_stops_no_other(monkeypatch, clock):
    """The next one goes beside it after a moment, and neither takes the other's turn away."""
    monkeypatch.setattr(right_of_way, "TURN_S", 0.01)
    way = RightOfWay(clock)
    with way.passing():
        pass
    async with asyncio.timeout(5), way.in_turn():
        async with way.in_turn():
            pass
        async with way.in_turn():
            pass
    async with asyncio.timeout(5), way.in_turn():
        pass
