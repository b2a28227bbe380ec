"""The store behind PgBouncer in transaction mode: each verb is one transaction there, and leaves the server's session as it was.

Where `server_lifetime` is 0 every transaction meets a session of its own, so that whatever is asked in two parts outside of one
fails each time; where there is one server connection for all, what a verb leaves behind is there to be seen.
"""

import asyncio
import json
import tempfile
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
from queue_kit import ANY, accepted, claim_one, finished, lose, replica, rows
from test_enqueue_sql import ENQUEUE, enqueueable
from test_erase import ANN, erase
from test_store_migrate import empty_dsn  # noqa: F401 - a fixture
from test_store_retention import (  # noqa: F401 - its tests run here as well, with the store of this module
    retention,
    test_a_day_that_ended_is_dropped_whole,
    test_a_key_is_kept_for_its_ttl_after_its_delivery,
)

from mailkeep.operator.changes import Why
from mailkeep.store.migrate import migrations
from mailkeep.store.postgres import Store
from pgbouncer import PgBouncer, needs_pgbouncer

pytestmark = needs_pgbouncer

A_SESSION_EACH = "server_lifetime = 0"
STATE = """
SELECT pg_backend_pid() AS pid,
       -- All but what PgBouncer itself sets to what each client said as it connected.
       (SELECT array_agg(name || '=' || setting ORDER BY name) FROM pg_settings
        WHERE source = 'session' AND name NOT IN ('application_name', 'client_encoding', 'DateStyle', 'TimeZone',
                                                  'standard_conforming_strings')) AS settings,
       (SELECT array_agg(name) FROM pg_prepared_statements) AS prepared,
       (SELECT array_agg(channel) FROM pg_listening_channels() AS channel) AS listening,
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks,
       (SELECT count(*) FROM pg_cursors WHERE statement NOT LIKE '%pg_cursors%') AS cursors,
       pg_my_temp_schema() AS temporary
"""


@contextmanager
def pooler(dsn, connections, *options):
    """Run a pooler before the database of `dsn`; yields the DSN that leads through it."""
    with tempfile.TemporaryDirectory(prefix="mk-pgb-") as folder:
        running = PgBouncer(Path(folder), dsn, connections, *options).start()
        try:
            yield running.dsn
        finally:
            running.kill9()


@pytest.fixture
async def store(dsn):
    """Yield a store over an empty database, of which each transaction meets a session of its own."""
    with pooler(dsn, 4, A_SESSION_EACH) as through:
        opened = await Store.open(through, pool_size=4)
        yield opened
        await opened.close()


async def test_starts_at_once_migrate_once(empty_dsn):  # noqa: F811 - the fixture
    """Five stores on a new database all come up with one key; a sixth finds nothing left to do."""
    with pooler(empty_dsn, 10, A_SESSION_EACH) as through:
        stores = await asyncio.gather(*(Store.open(through, pool_size=1) for _ in range(5)))
        stores.append(await Store.open(through, pool_size=1))
        try:
            assert len({store.hash_key for store in stores}) == 1
            ((versions,),) = await rows(stores[0], "SELECT count(*) FROM mail.schema_migrations")
            assert versions == len(migrations())
        finally:
            await asyncio.gather(*(store.close() for store in stores))


async def test_a_session_is_left_as_it_was(empty_dsn):  # noqa: F811 - the fixture
    """After migrations, the life of deliveries, mail.enqueue, an erasure and retention the one session there is has nothing of them."""
    with pooler(empty_dsn, 1) as through:
        client = await asyncpg.connect(through, statement_cache_size=0)
        before = await state(client)
        store = await Store.open(through, pool_size=2)
        try:
            await live(store, await enqueue(client))
        finally:
            await store.close()
        assert await state(client) == before
        await client.close()


async def live(store, enqueued):
    """Use what a service and its operators use."""
    sent = await claim_one(store, recipients=(ANN,))
    await store.mark_dot([sent])
    await store.finish([finished(sent)])
    waiting = await claim_one(store, await replica(store))
    assert await store.hand_back([waiting]) == {waiting.id}
    (again,) = await store.claim_due(waiting.replica_id, ANY, 1)
    await lose(store, again.replica_id)
    assert (await store.take_over()).keys() == {waiting.id}
    assert [row["delivery_id"] for row in await store.fetch("take_enqueued", 10, 15.0, 1 << 20)] == [enqueued]
    await accepted(store, recipients=(ANN,))
    assert (await erase(store, Why("request 4711", "eve"), cancel=True)).is_whole
    await store.ensure_partitions(days_behind=40)
    assert (await retention(store).sweep()).days_dropped


async def state(client):
    """Return what there is in the server's session beside its defaults."""
    async with client.transaction():
        return dict(await client.fetchrow(STATE))


async def enqueue(client):
    """Enqueue one command in a transaction that commits and one in another that does not; return the id of the first."""
    ids = []
    for ending in ("COMMIT", "ROLLBACK"):
        await client.execute("BEGIN; SET LOCAL lock_timeout = '7s'; SET LOCAL search_path = pg_temp")
        ids.append(await client.fetchval(ENQUEUE, json.dumps(enqueueable())))
        assert await client.fetchval("SHOW lock_timeout") == "7s"
        assert await client.fetchval("SHOW search_path") == "pg_temp"
        await client.execute(ending)
    return ids[0]
