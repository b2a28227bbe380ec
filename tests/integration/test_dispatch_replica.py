"""The replica: while it beats its claims are safe; when it can't, it falls quiet in time and starts anew if it was lost."""

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from queue_kit import (
    ANY,
    accepted,
    blocked_backend,
    claim_one,
    ending,
    finished,
    lose,
    now,
    row,
    rows,
    shift_clock,
    status,
)

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.core.outcome import Severity
from mailkeep.dispatch.replica import Replica
from mailkeep.dispatch.takeover import TakeoverWorker
from mailkeep.store.embedded import start_postgres
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.postgres import Store

PATIENCE_S = 90.0
"""How long a test waits for what must happen soon."""


@pytest.fixture
def own_server():
    """Yield a folder for a PostgreSQL that a test may stop and start."""
    folder = Path(tempfile.mkdtemp(prefix="mk-pg-"))
    folder.chmod(0o755)  # PostgreSQL may run as another user
    yield folder
    shutil.rmtree(folder)


@asynccontextmanager
async def beating(store, *, heartbeat_s=0.05, ttl_s=10.0):
    """Run a replica for the length of a test."""
    replica = Replica(store, heartbeat_s=heartbeat_s, ttl_s=ttl_s)
    await replica.start()
    try:
        yield replica
    finally:
        await replica.stop()


@asynccontextmanager
async def silenced(dsn):
    """Let no replica beat: the table of replicas is locked meanwhile."""
    other = await asyncpg.connect(dsn)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE mail.replicas IN ACCESS EXCLUSIVE MODE")
            yield other
    finally:
        await other.close()


async def until(condition):
    """Wait until `condition` holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def _row(store, replica_id):
    (found,) = await rows(store, "SELECT * FROM mail.replicas WHERE id = $1", replica_id)
    return found


async def test_a_replica_that_did_not_start_sends_nothing(store):
    """Before its first word in the table a replica has no right to send."""
    replica = Replica(store, heartbeat_s=1, ttl_s=10)
    assert not replica.may_send
    assert not replica.holds(replica.id)


async def test_it_beats(store):
    """A running replica renews its row, tells how much it holds, and may send."""
    async with beating(store) as replica:
        first = (await _row(store, replica.id))["last_seen_at"]
        replica.in_flight = 7
        async with asyncio.timeout(PATIENCE_S):
            while (found := await _row(store, replica.id))["in_flight"] != 7 or found[
                "last_seen_at"
            ] <= first:
                await asyncio.sleep(0.02)
        assert replica.may_send
        assert replica.holds(replica.id)
        assert not replica.holds(Replica(store, heartbeat_s=1, ttl_s=10).id)


async def test_it_says_goodbye(store):
    """A replica that stops leaves nothing to wait for: its claims are taken over at once."""
    async with beating(store) as replica:
        delivery_id = await accepted(store, replica.id, status=DeliveryStatus.SENDING)
    assert (await _row(store, replica.id))["stopped_at"] is not None
    assert await store.take_over() == {delivery_id: DeliveryStatus.RENDERED}


async def test_it_falls_quiet_after_half_the_ttl(store, dsn):
    """Unable to beat it may not send any more, long before others may take its mail; able again, it may."""
    async with beating(store, ttl_s=4.0) as replica:
        async with silenced(dsn):
            await until(lambda: not replica.may_send)
            assert not replica.holds(replica.id)
        await until(lambda: replica.may_send)


async def test_silence_counts_from_before_the_beat_was_sent(store, dsn):
    """A beat that hung on its way is as old as its start, so that two clocks never disagree to the unsafe side."""
    async with beating(store, ttl_s=4.0) as replica:
        before = replica._beaten_at
        async with silenced(dsn):
            await blocked_backend(dsn)
            hung_since = asyncio.get_running_loop().time()
            await asyncio.sleep(0.5)
        await until(lambda: replica._beaten_at > before)
        assert replica._beaten_at <= hung_since


@pytest.mark.timeout(60)
async def test_it_beats_again_after_a_silence_longer_than_its_ttl(store, dsn):
    """However long PostgreSQL was away or stuck, the heart does not stop for good."""
    async with beating(store, ttl_s=0.5) as replica:
        async with silenced(dsn):
            await asyncio.sleep(1.2)
        await until(lambda: replica.may_send)


class StoppingStore(Store):
    """A store whose answer to a beat comes together with the order to stop."""

    heart = None

    async def beat(self, replica_id, in_flight, hops_out, totals):
        answer = await super().beat(replica_id, in_flight, hops_out, totals)
        if self.heart is not None:
            self.heart.cancel()
        return answer


async def test_it_stops_whenever_it_is_told_to(store):
    """An order to stop that meets the answer to a beat is not lost, which would hang the shutdown."""
    stopping = StoppingStore(store._pool, store.hash_key)
    replica = Replica(stopping, heartbeat_s=0.05, ttl_s=10.0)
    await replica.start()
    stopping.heart = replica._beating
    done, _ = await asyncio.wait({replica._beating}, timeout=2.0)
    stopping.heart = None
    await replica.stop()
    assert done


async def test_a_lost_replica_starts_anew_under_another_id(store):
    """Declared lost, it gets a fresh id: claims under the old one are not its any more, and it may send for new ones."""
    async with beating(store) as replica:
        old_id = replica.id
        claim = await claim_one(store, old_id)
        await lose(store, old_id)
        await until(lambda: replica.id != old_id)
        assert not replica.holds(old_id)
        assert replica.holds(replica.id)
        assert await store.beat(replica.id, 0) is not None
        await store.take_over()
        assert await store.finish([finished(claim)]) == {}


async def test_it_knows_the_clock_of_the_database(store):
    """Ids and expiries are made by the database's clock, also where the machine's own is an hour off."""
    await shift_clock(store, timedelta(hours=1))
    async with beating(store) as replica:
        before, told, after = (await now(store)).timestamp(), replica.now_s(), (await now(store)).timestamp()
        assert before - 1 <= told <= after + 1
        await shift_clock(store, timedelta(hours=2))
        expected_s = (await now(store)).timestamp()
        await until(lambda: replica.now_s() >= expected_s - 1)


async def test_it_does_not_start_without_a_store(store):
    """Without PostgreSQL there is no replica, and its start says so."""
    await store.close()
    with pytest.raises(StoreUnavailableError):
        await Replica(store, heartbeat_s=1, ttl_s=10).start()


# -- takeover ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def watching(store, replica, *, ttl_s):
    """Run a takeover worker for the length of a test."""
    worker = TakeoverWorker(store=store, replica=replica, interval_s=0.05, ttl_s=ttl_s)
    running = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_mail_of_a_silent_replica_is_taken_over(store):
    """A replica that lives finds the silent one by its missing beats and takes its mail, with no rung used."""
    claim = await claim_one(store)
    async with beating(store) as replica, watching(store, replica, ttl_s=1.0):
        async with asyncio.timeout(PATIENCE_S):
            while await status(store, claim.id) != "rendered":
                await asyncio.sleep(0.02)
    kept = await row(store, claim.id)
    assert (kept["attempts"], kept["rungs_used"], kept["takeovers"]) == (1, 0, 1)
    (again,) = await store.claim_due(replica.id, ANY, 1000)
    assert await store.finish([finished(again, ending(again, Severity.SUCCESS))]) == {
        claim.id: DeliveryStatus.SENT
    }


async def test_mail_of_who_said_goodbye_waits_for_no_judgement(store):
    """A replica that is too new to judge others (as all are after an outage) takes over what an orderly stop left."""
    gone = Replica(store, heartbeat_s=60.0, ttl_s=60.0)
    await gone.start()
    delivery_id = await accepted(store, gone.id, status=DeliveryStatus.SENDING)
    await gone.stop()
    day_s = 86_400.0
    async with beating(store, ttl_s=day_s) as replica, watching(store, replica, ttl_s=day_s):
        assert not replica.may_judge
        async with asyncio.timeout(PATIENCE_S):
            while await status(store, delivery_id) != "rendered":
                await asyncio.sleep(0.02)


async def test_a_replica_that_lives_is_not_taken_over(store):
    """Two that watch each other and beat leave each other's claims alone."""
    async with beating(store) as one, beating(store) as other, watching(store, one, ttl_s=2.0):
        delivery_id = await accepted(store, other.id, status=DeliveryStatus.SENDING)
        await asyncio.sleep(3.0)
        assert await status(store, delivery_id) == "sending"


async def test_who_cannot_beat_does_not_judge_others(store, dsn):
    """A replica that lost touch itself declares nobody lost when the table comes back."""
    async with beating(store, ttl_s=2.0, heartbeat_s=60.0) as mute, watching(store, mute, ttl_s=2.0):
        other = Replica(store, heartbeat_s=60.0, ttl_s=2.0)
        await other.start()
        await until(lambda: not mute.may_send)
        await asyncio.sleep(1.5)
        assert (await _row(store, other.id))["lost_at"] is None
        await other.stop()


async def test_takeover_goes_on_after_an_outage(store, dsn):
    """A watcher that met a stuck table takes over as soon as it can."""
    async with beating(store, ttl_s=4.0) as replica:
        await until(lambda: replica.may_judge)
        claim = await claim_one(store)
        async with AsyncExitStack() as stack:
            async with silenced(dsn) as other:
                await stack.enter_async_context(watching(store, replica, ttl_s=1.0))
                await other.execute(
                    "SELECT pg_terminate_backend($1)", await blocked_backend(dsn, "SET lost_at")
                )
            async with asyncio.timeout(PATIENCE_S):
                while await status(store, claim.id) != "rendered":
                    await asyncio.sleep(0.02)


async def test_an_outage_of_postgresql_makes_nobody_lost(own_server):
    """After a restart each replica gets time to beat before it is judged: what it could not record yet is not sent again."""
    server = start_postgres(own_server, fast_unsafe=True)
    try:
        store = await Store.open(server.dsn, pool_size=4)
        async with (
            beating(store, ttl_s=2.0, heartbeat_s=0.5) as one,
            beating(store, ttl_s=2.0, heartbeat_s=0.5) as other,
            watching(store, one, ttl_s=2.0),
            watching(store, other, ttl_s=2.0),
        ):
            ids = {one.id, other.id}
            server.stop()
            await asyncio.sleep(3.0)
            server = start_postgres(own_server, fast_unsafe=True)
            await until(lambda: one.may_send and other.may_send)
            assert {one.id, other.id} == ids
        await store.close()
    finally:
        server.stop()
