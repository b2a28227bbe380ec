"""Work aside: the event loop goes on meanwhile, one call at a time has the thread, and who leaves harms nobody."""

import asyncio
import threading
from contextvars import ContextVar

import pytest

from held_call import PATIENCE_S, HeldCall
from mailkeep.aside import aside, breathe


async def test_the_event_loop_has_its_turns_meanwhile():
    """A call that ends only when the event loop has seen it begin does end, in a thread that is not the loop's."""
    held = HeldCall()
    call = asyncio.create_task(aside(held))
    async with asyncio.timeout(PATIENCE_S):
        await held.begun.wait()
        held.let_go()
        assert await call is not threading.current_thread()


async def test_what_a_call_raises_comes_back():
    """The caller gets the fault as if it had called by itself."""
    with pytest.raises(ZeroDivisionError):
        await aside(divmod, 1, 0)


async def test_a_call_is_made_in_the_context_of_its_caller():
    """Traces and whatever else belongs to a request are there aside, too."""
    variable = ContextVar("variable")
    variable.set("the caller's")
    assert await aside(variable.get) == "the caller's"


async def test_one_call_at_a_time_has_the_thread():
    """The next call begins when the one before has ended, also where the caller of that one left."""
    first, second = HeldCall(), HeldCall()
    async with asyncio.timeout(PATIENCE_S):
        left = asyncio.create_task(aside(first))
        await first.begun.wait()
        left.cancel()
        await asyncio.wait([left])
        call = asyncio.create_task(aside(second))
        await asyncio.sleep(0.05)
        assert not second.begun.is_set()
        first.let_go()
        second.let_go()
        await call
    assert left.cancelled()


async def test_a_call_that_was_given_up_before_its_turn_is_never_made():
    """Who leaves while others have the thread leaves no work behind."""
    held, made = HeldCall(), []
    async with asyncio.timeout(PATIENCE_S):
        first = asyncio.create_task(aside(held))
        await held.begun.wait()
        left = asyncio.create_task(aside(made.append, "given up"))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait([left])
        held.let_go()
        await first
        await aside(made.append, "the next")
    assert made == ["the next"]


async def test_a_breath_is_for_the_thread_aside(monkeypatch):
    """In the event loop itself nothing rests; aside each breath does."""
    rests = []
    monkeypatch.setattr("mailkeep.aside.time.sleep", rests.append)
    breathe()
    assert rests == []
    await aside(breathe)
    assert len(rests) == 1
