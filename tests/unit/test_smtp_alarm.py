"""The alarm that is set again and again: it rings when due, once, and only then."""

import asyncio

from mailkeep.smtp.alarm import Alarm


async def test_it_rings_once_when_due():
    """A set alarm rings once and then keeps still."""
    rings = []
    Alarm(lambda: rings.append(1)).set(0.02)
    await asyncio.sleep(0.15)
    assert rings == [1]


async def test_set_later_it_does_not_ring_at_the_first_time():
    """Moving it away costs no new timer, but the earlier time no longer counts."""
    rang = asyncio.Event()
    alarm = Alarm(rang.set)
    alarm.set(0.02)
    alarm.set(60)
    await asyncio.sleep(0.15)
    assert not rang.is_set()
    alarm.stop()


async def test_set_earlier_it_rings_earlier():
    """A shorter limit after a long one counts at once."""
    rang = asyncio.Event()
    alarm = Alarm(rang.set)
    alarm.set(60)
    alarm.set(0.02)
    await asyncio.wait_for(rang.wait(), 30)


async def test_cleared_or_stopped_it_does_not_ring():
    """What was waited for came: silence, until it is set again."""
    rings = []
    alarm = Alarm(lambda: rings.append(1))
    alarm.set(0.02)
    alarm.clear()
    await asyncio.sleep(0.1)
    alarm.set(0.02)
    alarm.stop()
    await asyncio.sleep(0.1)
    assert rings == []
    alarm.set(0.02)
    await asyncio.sleep(0.1)
    assert rings == [1]
