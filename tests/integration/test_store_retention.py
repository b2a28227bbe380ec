"""Retention: what is old enough goes, whole days at a time, and nothing alive ever does."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest
from queue_kit import (
    ANY,
    accepted,
    attempts,
    check_accounts,
    claim_one,
    ending,
    finished,
    payload,
    replica,
    row,
    rows,
    shift_clock,
    status,
)

from mailkeep.core.delivery import DeliveryStatus, Source
from mailkeep.core.outcome import Severity
from mailkeep.store.postgres import PARTITION_DAYS_AHEAD, PARTITION_DAYS_BEHIND
from mailkeep.store.retention import Retention, Swept

DAY_S = 86400.0
KINDS = ("deliveries", "recipients", "payloads", "attempts")


def retention(store, *, delivery_d=30.0, payload_d=7.0, key_d=7.0):
    """Build the retention of the contract's defaults, in days."""
    return Retention(
        store,
        delivery_s=delivery_d * DAY_S,
        payload_s=payload_d * DAY_S,
        key_s=key_d * DAY_S,
        malformed_s=90 * DAY_S,
    )


async def _on(store, days):
    """Let days pass, with the partitions that a service makes as they pass."""
    await shift_clock(store, timedelta(days=days))
    await store.ensure_partitions()


async def _sent(store, **fields):
    claim = await claim_one(store, **fields)
    await store.finish([finished(claim)])
    return claim.id


async def _buried(store):
    claim = await claim_one(store)
    await store.finish([finished(claim, ending(claim, Severity.TRANSIENT), ladder_s=())])
    return claim.id


async def _partitions(store, kind, delivery_id):
    found = await rows(
        store,
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = ('mail.' || $1::text)::regclass AND right(c.relname, 8) ="
        " to_char(to_timestamp(('x' || left(replace($2::text, '-', ''), 12))::bit(48)::bigint / 1000.0)"
        " AT TIME ZONE 'UTC', 'YYYYMMDD')",
        kind,
        str(delivery_id),
    )
    return [record["relname"] for record in found]


async def test_a_day_that_ended_is_dropped_whole(store):
    """Deliveries, attempts, payloads, recipients and dead letters of an old day go together."""
    gone = [await _sent(store), await _buried(store)]
    await _on(store, 32)
    kept = [await _sent(store), await _buried(store)]
    swept = await retention(store).sweep()
    assert swept.days_dropped >= 1
    for kind in KINDS:
        assert await _partitions(store, kind, gone[0]) == []
        assert await _partitions(store, kind, kept[0]) != []
    await check_accounts(store, kept)


async def test_what_is_young_stays(store):
    """Until the last delivery of a day has been ended for the whole time, nothing of the day is dropped."""
    first = await _sent(store)
    claim = await claim_one(store)
    await _on(store, 20)
    await store.finish([finished(claim)])
    await _on(store, 15)
    await retention(store, payload_d=60).sweep()
    assert await rows(store, "SELECT id FROM mail.deliveries WHERE id = $1", first) == []
    assert await status(store, claim.id) == "sent"
    assert len(await attempts(store, claim.id)) == 1
    assert await payload(store, claim.id) is not None


async def _queued(store):
    return await accepted(store, status=DeliveryStatus.QUEUED, message=None, command=b"{}")


async def _held(store):
    delivery_id = await accepted(store)
    await rows(store, "UPDATE mail.deliveries SET status = 'held', due_at = NULL WHERE id = $1", delivery_id)
    return delivery_id


async def _sending(store):
    return (await claim_one(store)).id


LIVING = {"rendered": accepted, "queued": _queued, "held": _held, "sending": _sending}


@pytest.mark.parametrize("kind", LIVING)
async def test_a_living_delivery_never_goes(store, kind):
    """However old it is, a delivery that has not ended keeps its row, payload, recipients and key; its neighbours go."""
    ended = await _sent(store)
    living = await LIVING[kind](store)
    await _on(store, 400)
    swept = await retention(store).sweep()
    assert swept.deliveries_deleted == 1
    assert await status(store, living) == kind
    assert await payload(store, living) is not None
    assert await rows(store, "SELECT FROM mail.recipients WHERE delivery_id = $1", living) != []
    assert (Source.API, str(living)) in await store.find_keys([(Source.API, str(living))])
    for table, column in (
        ("attempts", "delivery_id"),
        ("payloads", "delivery_id"),
        ("recipients", "delivery_id"),
    ):
        assert await rows(store, f"SELECT FROM mail.{table} WHERE {column} = $1", ended) == []
    await check_accounts(store, [living])


async def test_a_delivery_that_lived_long_can_still_be_sent(store):
    """After sweeps of a year a waiting delivery is claimed with its content, and ends."""
    delivery_id = await accepted(store)
    for _ in range(3):
        await _on(store, 120)
        await retention(store).sweep()
    (claim,) = await store.claim_due(await replica(store), ANY, 1000)
    assert (claim.id, claim.message is not None) == (delivery_id, True)
    assert await store.finish([finished(claim)]) == {delivery_id: DeliveryStatus.SENT}


async def test_content_goes_before_its_delivery(store):
    """Payloads have a shorter time; the delivery and its attempts stay to be looked at."""
    delivery_id = await _sent(store)
    await _on(store, 9)
    swept = await retention(store).sweep()
    assert swept.payload_days_dropped >= 1
    assert await payload(store, delivery_id) is None
    assert await status(store, delivery_id) == "sent"
    assert len(await attempts(store, delivery_id)) == 1


async def test_content_of_an_ended_delivery_does_not_wait_for_a_living_neighbour(store):
    """Where a living delivery holds a day, the content of those that ended is deleted row by row."""
    ended, living = await _sent(store), await accepted(store)
    await _on(store, 9)
    assert (await retention(store).sweep()).payloads_deleted == 1
    assert await payload(store, ended) is None
    assert await payload(store, living) is not None


async def test_content_counts_from_the_end_of_its_delivery(store):
    """An old delivery that ended yesterday keeps its content for its time."""
    claim = await claim_one(store)
    await _on(store, 20)
    await store.finish([finished(claim)])
    await _on(store, 1)
    await retention(store).sweep()
    assert await payload(store, claim.id) is not None


async def test_a_key_is_kept_as_long_as_its_delivery(store):
    """While the delivery can be looked up, its key answers with it: at least the TTL, and never shorter than the row."""
    delivery_id = await _sent(store)
    key = (Source.API, str(delivery_id))
    await _on(store, 20)
    await retention(store, key_d=7).sweep()
    assert (await row(store, delivery_id))["status"] == "sent"
    assert key in await store.find_keys([key])
    await _on(store, 20)
    await retention(store, key_d=7).sweep()
    assert await store.find_keys([key]) == {}


async def test_a_key_is_kept_for_its_ttl_after_its_delivery(store):
    """A delivery that is kept shorter than its key leaves the key behind until its own time."""
    delivery_id = await _sent(store)
    key = (Source.API, str(delivery_id))
    await _on(store, 5)
    await retention(store, delivery_d=1, payload_d=1, key_d=7).sweep()
    assert await rows(store, "SELECT FROM mail.deliveries") == []
    assert key in await store.find_keys([key])
    await _on(store, 3)
    assert (await retention(store, delivery_d=1, payload_d=1, key_d=7).sweep()).keys_deleted == 1
    assert await store.find_keys([key]) == {}


async def test_replicas_are_forgotten_when_nothing_is_theirs(store):
    """A replica that left goes after a day, unless it still claims something."""
    gone, claim = await replica(store), await claim_one(store)
    await store.stop_replica(gone)
    await store.stop_replica(claim.replica_id)
    living = await replica(store)
    assert (await retention(store).sweep()).replicas_deleted == 0
    await _on(store, 2)
    assert (await retention(store).sweep()).replicas_deleted == 1
    assert {found["id"] for found in await rows(store, "SELECT id FROM mail.replicas")} == {
        claim.replica_id,
        living,
    }


async def test_a_long_reader_is_not_waited_for(store, dsn):
    """A day that somebody is reading is left for the next sweep, and accepting goes on meanwhile."""
    delivery_id = await _sent(store)
    await _on(store, 32)
    reader = await asyncpg.connect(dsn)
    async with reader.transaction():
        await reader.fetch("SELECT count(*) FROM mail.deliveries")
        await retention(store).sweep()
        await accepted(store)
        assert await _partitions(store, "deliveries", delivery_id) != []
    await reader.close()
    await retention(store).sweep()
    assert await _partitions(store, "deliveries", delivery_id) == []


async def test_sweeps_at_once_do_not_disturb_each_other(store):
    """Replicas that started together sweep together: each sweep ends well, and the old day is gone."""
    delivery_id = await _sent(store)
    for days in (32, 32, 32):
        await _on(store, days)
        await asyncio.gather(*(retention(store).sweep() for _ in range(4)))
    assert await _partitions(store, "deliveries", delivery_id) == []


async def test_a_sweep_makes_the_days_to_come(store):
    """A service that runs for months always has partitions for a week ahead."""
    await shift_clock(store, timedelta(days=60))
    await retention(store).sweep()
    await shift_clock(store, timedelta(days=7))
    await accepted(store)


async def test_nothing_to_sweep_is_nothing_swept(store):
    """On a young store a sweep removes nothing and says so."""
    await _sent(store)
    assert await retention(store).sweep() == Swept()


async def test_a_partition_is_made_once(store):
    """Making the days again changes nothing, also from several at once."""
    await asyncio.gather(*(store.ensure_partitions() for _ in range(5)))
    found = await rows(
        store, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'mail.deliveries'::regclass"
    )
    assert found[0][0] == PARTITION_DAYS_BEHIND + 1 + PARTITION_DAYS_AHEAD


async def test_a_long_day_is_swept_in_short_statements(store, monkeypatch):
    """Whatever a statement may take at once, nothing that is old enough is left behind, and keys are looked through once a day."""
    monkeypatch.setattr("mailkeep.store.retention.DELETE_BATCH", 2)
    monkeypatch.setattr("mailkeep.store.retention.KEY_BLOCKS", 1)
    for number in range(5):
        await _sent(store, idempotency_key=f"{number}".ljust(255, "k"))
    living = await accepted(store)
    await _on(store, 40)
    swept = await retention(store).sweep()
    assert (swept.payloads_deleted, swept.deliveries_deleted, swept.keys_deleted) == (0, 5, 5)
    assert {row["id"] for row in await rows(store, "SELECT id FROM mail.deliveries")} == {living}
    assert await store.fetch("read_key_blocks") == []
    await _on(store, 1)
    assert await store.fetch("read_key_blocks") != []


@pytest.mark.parametrize(("age_d", "has_old"), [(6.9, True), (7.99, True), (9.01, False)])
async def test_days_that_can_hold_nothing_old_are_not_read(store, age_d, has_old):
    """A day that began seven to eight days ago has nothing that ended earlier, but for ids a day ahead of their acceptance."""
    (today,) = await rows(store, "SELECT to_char(mail.now() AT TIME ZONE 'UTC', 'YYYYMMDD') AS day")
    await shift_clock(store, timedelta(days=7))
    (judged,) = await store.fetch_of_day("judge_day", today["day"], age_d * DAY_S, DAY_S)
    assert judged["has_old"] is has_old


@pytest.mark.parametrize(("age_d", "has_ended"), [(11, False), (9, True)])
@pytest.mark.parametrize("events", [True, False])
async def test_a_day_has_ended_with_the_last_of_its_deliveries(store, events, age_d, has_ended):
    """As its last event tells, or, on a day from before there were events, its deliveries."""
    await _sent(store)
    claim = await claim_one(store)
    (today,) = await rows(store, "SELECT to_char(mail.now() AT TIME ZONE 'UTC', 'YYYYMMDD') AS day")
    await _on(store, 20)
    await store.finish([finished(claim)])
    if not events:
        await rows(store, "DELETE FROM mail.events")
    await _on(store, 10)
    (judged,) = await store.fetch_of_day("judge_day", today["day"], age_d * DAY_S, DAY_S)
    assert judged["has_ended"] is has_ended


async def test_dropping_a_day_stands_in_no_circle_with_a_statement(store, dsn):
    """What has read deliveries and goes on to payloads is let through by a drop that waits for it."""
    await _sent(store)
    (today,) = await rows(store, "SELECT to_char(mail.now() AT TIME ZONE 'UTC', 'YYYYMMDD') AS day")
    await _on(store, 40)
    reader = await asyncpg.connect(dsn)
    try:
        async with reader.transaction():
            await reader.fetch("SELECT FROM mail.deliveries LIMIT 1")
            dropping = asyncio.create_task(
                store.fetch(
                    "drop_day", today["day"], ["payloads", "attempts", "recipients", "events", "deliveries"]
                )
            )
            while not dropping.done() and not await rows(store, "SELECT FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0)
            await reader.execute("LOCK TABLE ONLY mail.payloads IN ROW EXCLUSIVE MODE NOWAIT")
        await dropping
    finally:
        await reader.close()


async def test_keys_wait_for_a_day_that_could_not_be_locked(store, dsn):
    """They are swept once a day: done before their day is gone, they would outlive it until the next one."""
    delivery_id = await _sent(store)
    key = (Source.API, str(delivery_id))
    assert key in await store.find_keys([key])
    await _on(store, 40)
    reader = await asyncpg.connect(dsn)
    try:
        async with reader.transaction():
            await reader.fetch("SELECT FROM mail.deliveries LIMIT 1")  # a lock that dropping waits for
            assert (await retention(store).sweep()).days_dropped == 0
        swept = await retention(store).sweep()
    finally:
        await reader.close()
    assert swept.days_dropped
    assert swept.keys_deleted == 1
    assert await store.find_keys([key]) == {}


async def test_the_days_to_come_are_made_during_a_sweep_that_lasts(store, monkeypatch):
    """While a sweep removes for days, mail of these days finds its partitions."""

    class Lasting(Retention):
        async def _days(self, table):
            if table == "payloads":
                await shift_clock(store, timedelta(days=2))
            return await super()._days(table)

    monkeypatch.setattr("mailkeep.store.retention.MAKE_DAYS_EVERY_S", 0.0)
    await Lasting(
        store, delivery_s=DAY_S * 30, payload_s=DAY_S * 7, key_s=DAY_S * 7, malformed_s=DAY_S
    ).sweep()
    (last,) = await rows(
        store,
        "SELECT to_regclass('mail.deliveries_p' || to_char((mail.now() AT TIME ZONE 'UTC')::date + $1::int, 'YYYYMMDD'))",
        PARTITION_DAYS_AHEAD,
    )
    assert last["to_regclass"]
