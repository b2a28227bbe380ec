"""Connections to PostgreSQL: statements that were rolled back run again, silence ends, and what is answered is replicated."""

import asyncio
import shutil
import socket
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from queue_kit import check_accounts, delivery, row

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.core.queue import KeyHolder
from mailkeep.store import connect, postgres
from mailkeep.store.embedded import start_postgres
from mailkeep.store.errors import StoreUnavailableError, translated
from mailkeep.store.migrate import migrate
from mailkeep.store.postgres import Store
from postgres_proxy import Moment, PostgresProxy

PATIENCE_S = 60.0


@asynccontextmanager
async def opened(dsn, **server_settings):
    """Yield a store whose sessions have these settings."""
    store = await Store.open(dsn + "".join(f"&{name}={value}" for name, value in server_settings.items()))
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def keys_locked(dsn):
    """Let nobody at the idempotency keys meanwhile."""
    other = await asyncpg.connect(dsn)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE mail.idempotency_keys IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await other.close()


@pytest.fixture
def proxy(dsn):
    """Stand between a store and PostgreSQL."""
    standing = PostgresProxy(dsn).start()
    yield standing
    standing.stop()


async def test_a_statement_that_met_a_lock_timeout_runs_again(dsn):
    """55P03: where the role has a `lock_timeout`, a lock that is held for a moment is waited out, not told to the caller."""
    async with opened(dsn, lock_timeout="100") as store:
        new = await delivery(store)
        async with keys_locked(dsn):
            accepting = asyncio.create_task(store.accept(new.id, [new]))
            await asyncio.sleep(0.15)  # one timeout and a half: what is waited for is the refusal itself
        assert await accepting == [new.id]


async def test_a_lock_that_stays_is_an_outage(dsn):
    """A statement is repeated a bounded number of times; then it is surely not done, and the caller may come again."""
    async with opened(dsn, lock_timeout="20") as store:
        new = await delivery(store)
        async with keys_locked(dsn):
            with pytest.raises(StoreUnavailableError) as caught:
                await store.accept(new.id, [new])
        assert not caught.value.in_doubt
        assert await store.accept(new.id, [new]) == [new.id]
        await check_accounts(store, [new.id])


async def test_serialization_failures_run_again(dsn):
    """40001: under a stricter isolation rivals for the same keys lose, run again, and are answered like replays."""
    async with opened(dsn, default_transaction_isolation="repeatable%20read") as store:
        batches = [
            [await delivery(store, idempotency_key=f"k{key}") for key in range(10)] for _rival in range(6)
        ]
        answers = await asyncio.gather(*(store.accept(batch[0].id, batch) for batch in batches))
        for rivals in zip(*answers, strict=True):
            assert sum(not isinstance(answer, KeyHolder) for answer in rivals) == 1


async def test_what_never_left_is_not_in_doubt(dsn, proxy):
    """Where no connection can be had nothing was sent: surely not stored."""
    store = await Store.open(proxy.dsn, pool_size=1)
    new = await delivery(store)
    proxy.refuse()
    await store.renew_connections()
    try:
        with pytest.raises(StoreUnavailableError) as caught:
            await store.accept(new.id, [new])
        assert not caught.value.in_doubt
    finally:
        await store.close()


@pytest.mark.parametrize("status", [DeliveryStatus.SENDING, DeliveryStatus.RENDERED])
async def test_what_was_stored_in_doubt_is_known_again(dsn, proxy, status):
    """Asked after a lost answer: a claim at birth is found to be ours, what waits is answered by its key, neither is doubled."""
    store = await Store.open(proxy.dsn, pool_size=1)
    try:
        new = await delivery(store, status=status)
        replica_id = uuid4()
        proxy.cut("-- Accept a batch", Moment.COMMITTED)
        with pytest.raises(StoreUnavailableError) as caught:
            await store.accept(replica_id, [new])
        assert caught.value.in_doubt
        (answer,) = await store.accept_again(replica_id, [new])
        assert answer == new.id if status is DeliveryStatus.SENDING else answer.delivery_id == new.id
        # To anybody else, and to a rival under the same key, it is taken.
        (stranger,) = await store.accept_again(uuid4(), [new])
        assert isinstance(stranger, KeyHolder)
        assert (await row(store, new.id))["status"] == status
        await check_accounts(store, [new.id])
    finally:
        await store.close()


async def test_one_silent_connection_speaks_for_all(dsn, proxy, monkeypatch):
    """After one statement that was never answered no other one is tried over the connections there were."""
    monkeypatch.setattr(postgres, "COMMAND_TIMEOUT_S", 1.0)
    monkeypatch.setattr(postgres, "ACQUIRE_TIMEOUT_S", 1.0)
    store = await Store.open(proxy.dsn, pool_size=4)
    try:
        await asyncio.gather(*(store.next_due_s([], 1.0) for _ in range(4)))
        proxy.swallow()
        with pytest.raises(StoreUnavailableError):
            await store.notify_due()
        await asyncio.gather(*(store.notify_due() for _ in range(4)))
    finally:
        await store.close()


async def test_a_start_gives_up_on_a_server_that_fell_silent(proxy, monkeypatch):
    """Looking at the schema ends, too: a connection that lives and brings no answer is an outage."""
    monkeypatch.setattr(connect, "COMMAND_TIMEOUT_S", 1.0)
    connection = await connect.connect(proxy.dsn)
    proxy.swallow()
    try:
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(StoreUnavailableError), translated():
                await migrate(connection)
    finally:
        connection.terminate()


async def test_a_peer_that_is_gone_is_noticed_by_the_system(dsn, proxy):
    """Connections over a network have keepalives and a bound on what is not acknowledged, however they were made."""
    for made in (await connect.connect(proxy.dsn), await asyncpg.connect(proxy.dsn)):
        await connect.set_up(made)
        peer = made._transport.get_extra_info("socket")
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == connect.SILENT_S * 1000
        await made.close()


# -- synchronous replication -------------------------------------------------------------------------------------------


@pytest.fixture
def own_server():
    """Run a PostgreSQL with its durable defaults, whose settings a test may change."""
    folder = Path(tempfile.mkdtemp(prefix="mk-pg-"))
    folder.chmod(0o755)  # PostgreSQL may run as another user
    server = start_postgres(folder)
    yield server
    server.stop()
    shutil.rmtree(folder)


async def waits_for_a_standby(admin, count=1):
    """Wait until so many commits wait for a synchronous standby; return their process numbers."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await admin.fetch("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            if len(found) >= count:
                return [record["pid"] for record in found]
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("ended_by", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_a_replay_is_answered_only_when_it_is_replicated(own_server, ended_by):
    """A commit that is cut while it waits for its standby is visible all the same: its replay must wait as it did."""
    store = await Store.open(own_server.dsn, pool_size=2)
    admin = await asyncpg.connect(own_server.dsn)
    try:
        new, again = [await delivery(store, idempotency_key="k") for _ in range(2)]
        await admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'one_that_is_away'")
        await admin.execute("SELECT pg_reload_conf()")
        first = asyncio.create_task(store.accept(new.id, [new]))
        (pid,) = await waits_for_a_standby(admin)
        first.cancel() if ended_by == "pg_cancel_backend" else None
        await admin.execute(f"SELECT {ended_by}({pid})")
        await asyncio.gather(first, return_exceptions=True)
        second = asyncio.create_task(store.accept(again.id, [again]))
        await waits_for_a_standby(admin)
        assert not second.done()
        await admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await admin.execute("SELECT pg_reload_conf()")
        (answer,) = await second
        assert answer.delivery_id == new.id
    finally:
        await admin.close()
        await store.close()
