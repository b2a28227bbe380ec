"""The recorder: results of attempts wait for PostgreSQL, whatever becomes of it, and one bad result harms no other."""

import asyncio
import shutil
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from queue_kit import attempts, blocked_backend, claim_one, ending, finished, lose, rows, snapshot, status

from mailkeep.core.delivery import DeliveryStatus, Guarantee
from mailkeep.core.outcome import Severity
from mailkeep.dispatch.recorder import Recorder
from mailkeep.dispatch.right_of_way import ROWS_AMONG_CODES, RightOfWay
from mailkeep.store.embedded import start_postgres
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.postgres import Store


@pytest.fixture
def own_server():
    """Yield a folder for a PostgreSQL that a test may stop and start."""
    folder = Path(tempfile.mkdtemp(prefix="mk-pg-"))
    folder.chmod(0o755)  # PostgreSQL may run as another user
    yield folder
    shutil.rmtree(folder)


@asynccontextmanager
async def blocked(dsn):
    """Hold every claimed row, so that a statement about it waits; yields the connection that holds them."""
    other = await asyncpg.connect(dsn)
    trial = other.transaction()
    await trial.start()
    await other.execute("SELECT FROM mail.deliveries FOR UPDATE")
    try:
        yield other
    finally:
        await trial.rollback()
        await other.close()


async def test_results_survive_a_restart_of_postgresql(own_server):
    """Attempts that end while PostgreSQL is away are recorded, once, when it is back."""
    server = start_postgres(own_server, fast_unsafe=True)
    try:
        store = await Store.open(server.dsn, pool_size=2)
        claims = [await claim_one(store) for _ in range(3)]
        recorder = Recorder(store, RightOfWay())
        server.stop()
        recording = [asyncio.create_task(recorder.finish(finished(claim))) for claim in claims]
        done, _ = await asyncio.wait(recording, timeout=0.5)
        assert not done
        server = start_postgres(own_server, fast_unsafe=True)
        assert await asyncio.wait_for(asyncio.gather(*recording), 30) == [DeliveryStatus.SENT] * 3
        for claim in claims:
            assert await status(store, claim.id) == "sent"
            assert len(await attempts(store, claim.id)) == 1
        await store.close()
    finally:
        server.stop()


async def test_a_commit_whose_answer_was_lost_is_recorded_once(store, dsn):
    """The statement is repeated after a cut connection and finds its own work done: one attempt, whatever was answered."""
    claim = await claim_one(store)
    recorder = Recorder(store, RightOfWay())
    async with blocked(dsn) as other:
        recording = asyncio.create_task(recorder.finish(finished(claim)))
        cut = await blocked_backend(dsn)
        await other.execute("SELECT pg_terminate_backend($1)", cut)
        while await blocked_backend(dsn) == cut:
            await asyncio.sleep(0.01)
    assert await asyncio.wait_for(recording, 30) in (DeliveryStatus.SENT, None)
    assert await status(store, claim.id) == "sent"
    assert len(await attempts(store, claim.id)) == 1


async def test_a_result_of_a_lost_claim_is_told_and_changes_nothing(store):
    """Who lost the claim learns it from the answer, and the table stays as it was."""
    claim = await claim_one(store)
    await lose(store, claim.replica_id)
    await store.take_over()
    before = await snapshot(store)
    assert await Recorder(store, RightOfWay()).finish(finished(claim)) is None
    assert await snapshot(store) == before


async def _finish_behind_the_first(recorder, claims, dsn):
    """Finish `claims`, all but the first while its commit is in flight."""
    async with blocked(dsn):
        recording = [asyncio.create_task(recorder.finish(finished(claims[0])))]
        await blocked_backend(dsn)
        recording += [asyncio.create_task(recorder.finish(finished(claim))) for claim in claims[1:]]
        await asyncio.sleep(0)
    await asyncio.gather(*recording)


async def test_results_of_one_batch_are_recorded_in_one_commit(store, dsn):
    """What ends while a commit is in flight is written together by the next."""
    claims = [await claim_one(store) for _ in range(6)]
    await _finish_behind_the_first(Recorder(store, RightOfWay()), claims, dsn)
    commits = await rows(store, "SELECT count(DISTINCT xmin::text) FROM mail.deliveries")
    assert commits[0][0] == 2


async def test_while_login_codes_are_about_batches_are_small(store, dsn):
    """A code that meets a statement of the rest waits for a short one."""
    claims = [await claim_one(store) for _ in range(2 * ROWS_AMONG_CODES + 1)]
    way = RightOfWay()
    with way.passing():
        pass
    await _finish_behind_the_first(Recorder(store, way), claims, dsn)
    commits = await rows(store, "SELECT count(*) FROM mail.deliveries GROUP BY xmin::text ORDER BY 1")
    assert [found["count"] for found in commits] == [1, ROWS_AMONG_CODES, ROWS_AMONG_CODES]


@pytest.mark.timeout(30)
async def test_a_result_that_cannot_be_stored_harms_no_other(store):
    """One attempt whose text PostgreSQL refuses must not take the results of its batch with it, nor stay claimed."""
    bad, good = await claim_one(store), [await claim_one(store) for _ in range(3)]
    recorder = Recorder(store, RightOfWay())
    unstorable = finished(bad, ending(bad, Severity.TRANSIENT, text="nul \0 in a reply"))
    recording = [
        asyncio.create_task(recorder.finish(attempt))
        for attempt in (finished(good[0]), finished(good[1]), unstorable, finished(good[2]))
    ]
    answers = await asyncio.gather(*recording, return_exceptions=True)
    assert [await status(store, claim.id) for claim in good] == ["sent"] * 3
    assert [answers[index] for index in (0, 1, 3)] == [DeliveryStatus.SENT] * 3
    assert await status(store, bad.id) != "sending"


async def test_the_mark_before_the_dot_forbids_it_when_the_store_is_away(store):
    """I2: a mark that could not be committed is no permission, nor is that of a lost claim."""
    lost = await claim_one(store, guarantee=Guarantee.AT_MOST_ONCE)
    recorder = Recorder(store, RightOfWay())
    assert await recorder.mark_dot(lost) is True
    await store.hand_back([lost])
    assert await recorder.mark_dot(lost) is False
    await store.close()
    assert await recorder.mark_dot(lost) is False


async def test_a_claim_that_could_not_be_given_back_is_told(store):
    """Giving back is not repeated for ever: the caller learns that the table was away."""
    claim = await claim_one(store)
    recorder = Recorder(store, RightOfWay())
    assert await recorder.hand_back(claim) is True
    assert await recorder.hand_back(claim) is False
    await store.close()
    with pytest.raises(StoreUnavailableError):
        await recorder.hand_back(claim)


async def test_draining_waits_until_everything_is_written(store):
    """After a drain each result is in the table, though nobody awaited its answer."""
    claims = [await claim_one(store) for _ in range(4)]
    recorder = Recorder(store, RightOfWay())
    recording = [asyncio.create_task(recorder.finish(finished(claim))) for claim in claims]
    await asyncio.sleep(0)
    await recorder.drain()
    assert [await status(store, claim.id) for claim in claims] == ["sent"] * 4
    await asyncio.gather(*recording)
