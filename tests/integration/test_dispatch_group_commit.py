"""Group commit: what waits is written together, in order and bounded, and each caller gets its own answer."""

import asyncio

import pytest

from mailkeep.store.group_commit import MAX_BATCH, MAX_PENDING, GroupCommit, OverloadedError


class Journal:
    """Writes batches, one `gate` each; an entry that is an exception fails its batch."""

    def __init__(self):
        self.batches = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def write(self, batch):
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            await self.gate.wait()
            self.batches.append(batch)
            for entry in batch:
                if isinstance(entry, Exception):
                    raise entry
            return [f"done {entry}" for entry in batch]
        finally:
            self.in_flight -= 1


async def test_a_lone_entry_leaves_at_once():
    """Nothing waits for company: one entry is written without a timer."""
    journal = Journal()
    assert await asyncio.wait_for(GroupCommit(journal.write).submit("a"), 5) == "done a"
    assert journal.batches == [["a"]]


async def test_what_comes_during_a_commit_is_written_by_the_next():
    """While one commit is in flight the rest gathers, and goes together in the order it came."""
    journal = Journal()
    journal.gate.clear()
    commits = GroupCommit(journal.write)
    first = commits.submit("a")
    await asyncio.sleep(0)
    others = [commits.submit(entry) for entry in "bcd"]
    await asyncio.sleep(0)
    journal.gate.set()
    assert await asyncio.gather(first, *others) == ["done a", "done b", "done c", "done d"]
    assert journal.batches == [["a"], ["b", "c", "d"]]


async def test_a_batch_of_one_takes_no_company():
    """Where a batch may have one entry, each that waits is written by itself, as many at a time as there are lanes."""
    journal = Journal()
    journal.gate.clear()
    commits = GroupCommit(journal.write, lanes=2, max_batch=lambda: 1)
    writing = [commits.submit(entry) for entry in "abcd"]
    await asyncio.sleep(0)
    journal.gate.set()
    assert await asyncio.gather(*writing) == ["done a", "done b", "done c", "done d"]
    assert sorted(journal.batches) == [["a"], ["b"], ["c"], ["d"]]
    assert journal.most_in_flight == 2


async def test_a_batch_is_bounded():
    """However much waits, a statement gets no more than its bound, and nothing is left out or reordered."""
    journal = Journal()
    commits = GroupCommit(journal.write)
    entries = list(range(2 * MAX_BATCH + 1))
    answers = await asyncio.gather(*map(commits.submit, entries))
    assert answers == [f"done {entry}" for entry in entries]
    assert [len(batch) for batch in journal.batches] == [MAX_BATCH, MAX_BATCH, 1]


async def test_more_than_the_bound_is_refused():
    """Past the bound a caller is told at once; those before it are still written, and then there is room again."""
    journal = Journal()
    journal.gate.clear()
    commits = GroupCommit(journal.write)
    waiting = [commits.submit(entry) for entry in range(MAX_PENDING)]
    with pytest.raises(OverloadedError):
        commits.submit("one too many")
    journal.gate.set()
    assert len(await asyncio.gather(*waiting)) == MAX_PENDING
    assert await commits.submit("later") == "done later"


async def test_a_fault_reaches_the_callers_of_its_batch_and_nobody_else():
    """Each caller of the failed batch gets the fault; the batches before and after it are written."""
    journal = Journal()
    journal.gate.clear()
    commits = GroupCommit(journal.write)
    before = commits.submit("a")
    await asyncio.sleep(0)
    failing = [commits.submit(entry) for entry in ("b", OSError("disk"), "c")]
    journal.gate.set()
    assert await before == "done a"
    for outcome in await asyncio.gather(*failing, return_exceptions=True):
        assert isinstance(outcome, OSError)
    assert await commits.submit("d") == "done d"


async def test_a_caller_that_went_away_does_not_stop_the_commit():
    """What was handed in is written although its caller gave up, and its neighbours get their answers."""
    journal = Journal()
    journal.gate.clear()
    commits = GroupCommit(journal.write)
    gone, stays = commits.submit("a"), commits.submit("b")
    await asyncio.sleep(0)
    gone.cancel()
    journal.gate.set()
    assert await stays == "done b"
    assert journal.batches == [["a", "b"]]


async def test_no_more_than_its_lanes_are_in_flight():
    """With two lanes two commits run side by side, and never a third."""
    journal = Journal()
    journal.gate.clear()
    commits = GroupCommit(journal.write, lanes=2)
    waiting = []
    for entry in range(5):
        waiting.append(commits.submit(entry))
        await asyncio.sleep(0)
    assert journal.in_flight == 2
    journal.gate.set()
    await asyncio.gather(*waiting)
    assert journal.most_in_flight == 2


async def test_draining_waits_for_everything():
    """After a drain nothing is pending or in flight, and a drain of nothing ends at once."""
    journal = Journal()
    commits = GroupCommit(journal.write)
    await commits.drain()
    waiting = [commits.submit(entry) for entry in range(MAX_BATCH + 1)]
    await commits.drain()
    assert all(future.done() for future in waiting)
    assert journal.in_flight == 0


async def test_under_load_the_next_batch_waits_for_as_many_again():
    """After a batch of two the next one leaves when it has two as well, long before its time is over."""
    journal = Journal()
    commits = GroupCommit(journal.write, gather_s=3600)
    await asyncio.gather(commits.submit("a"), commits.submit("b"))
    third = commits.submit("c")
    await asyncio.sleep(0)
    assert journal.batches == [["a", "b"]]
    await asyncio.wait_for(asyncio.gather(third, commits.submit("d")), 5)
    assert journal.batches == [["a", "b"], ["c", "d"]]


async def test_nobody_waits_for_company_beyond_its_time():
    """Where no others come an entry is written when the time is over, and the next lone one at once."""
    journal = Journal()
    commits = GroupCommit(journal.write, gather_s=0.01)
    await asyncio.gather(commits.submit("a"), commits.submit("b"))
    assert await asyncio.wait_for(commits.submit("c"), 5) == "done c"
    assert await asyncio.wait_for(commits.submit("d"), 5) == "done d"
    assert journal.batches == [["a", "b"], ["c"], ["d"]]
