"""Locks that somebody holds for longer than `lock_timeout`: what was stored is answered as stored, the rest is to be repeated, nothing is doubled."""

from contextlib import asynccontextmanager

import asyncpg
import pytest
from http_kit import BATCH, DELIVERIES, command
from queue_kit import check_accounts, delivery, rows

from mailkeep.core.queue import KeyHolder
from mailkeep.store.errors import StoreUnavailableError

LOCK_TIMEOUT = "50ms"
THE_KEY = "SELECT FROM mail.idempotency_keys WHERE key = 'taken' FOR UPDATE"


@pytest.fixture
async def dsn(dsn):
    """Let every session of the test's database give up on a lock soon, as an operator may."""
    connection = await asyncpg.connect(dsn)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET lock_timeout = '{LOCK_TIMEOUT}'")
    await connection.close()
    return dsn


@asynccontextmanager
async def locked(dsn, statement):
    """Hold what `statement` locks."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute(statement)
            yield
    finally:
        await connection.close()


async def test_a_locked_key_leaves_its_neighbours_their_answers(store, dsn):
    """Of a batch whose one key somebody has locked the others are stored and answered so; repeated, all are answered by their holders."""
    first, new, newer = [await delivery(store, idempotency_key=key) for key in ("taken", "new", "newer")]
    assert await store.accept(first.id, [first]) == [first.id]
    batch = [new, await delivery(store, idempotency_key="taken"), newer]
    async with locked(dsn, THE_KEY):
        answers = await store.accept(first.id, batch)
    assert [answers[0], answers[2]] == [new.id, newer.id]
    assert isinstance(answers[1], StoreUnavailableError)
    assert not answers[1].in_doubt
    again = await store.accept(first.id, batch)
    holders = [answer.delivery_id for answer in again if isinstance(answer, KeyHolder)]
    assert holders == [new.id, first.id, newer.id]
    await check_accounts(store, holders)


@pytest.mark.parametrize("table", ["idempotency_keys", "deliveries", "recipients", "payloads"])
async def test_a_locked_table_or_partition_stores_nothing(store, dsn, table):
    """Where the statement itself meets the lock nothing of it is stored, surely, and the same batch is taken when the lock is gone."""
    first = await delivery(store, idempotency_key="taken")
    assert await store.accept(first.id, [first]) == [first.id]
    ((partition,),) = await rows(store, f"SELECT tableoid::regclass::text FROM mail.{table}")
    batch = [await delivery(store, idempotency_key=key) for key in ("new", "newer")]
    async with locked(dsn, f"LOCK TABLE {partition} IN SHARE MODE"):
        with pytest.raises(StoreUnavailableError) as caught:
            await store.accept(first.id, batch)
        assert not caught.value.in_doubt
    await check_accounts(store, [first.id])
    assert await store.accept(first.id, batch) == [new.id for new in batch]
    await check_accounts(store, [first.id, *(new.id for new in batch)])


async def test_a_client_repeats_what_was_not_answered(sending, next_hop, dsn):
    """Over HTTP a call whose key is locked gets a 503 with a time to come back, in a batch its neighbours a 202; each is sent once."""
    asked = {
        key: command(idempotency_key=key, payload={"to": [f"{key}@example.org"]})
        for key in ("taken", "new", "newer")
    }
    first = (await sending.post(DELIVERIES, asked["taken"])).json()["delivery_id"]
    batch = {"commands": [asked["new"], asked["taken"], asked["newer"]]}
    async with locked(dsn, THE_KEY):
        alone = await sending.post(DELIVERIES, asked["taken"])
        answers = (await sending.post(BATCH, batch)).json()["answers"]
    assert (alone.status_code, alone.headers["retry-after"]) == (503, "1")
    assert [answer["status"] for answer in answers] == [202, 503, 202]
    again = (await sending.post(BATCH, batch)).json()["answers"]
    ids = [answers[0]["delivery_id"], first, answers[2]["delivery_id"]]
    assert [(answer["delivery_id"], answer["replayed"]) for answer in again] == [(key, True) for key in ids]
    for delivery_id in ids:
        await sending.settled(delivery_id, "sent")
    assert sorted(envelope.rcpt_tos[0] for envelope in next_hop.messages) == [
        f"{key}@example.org" for key in sorted(asked)
    ]
