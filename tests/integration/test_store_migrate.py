"""Migrations: many may start at once, a killed one leaves nothing, a changed one stops the start."""

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from queue_kit import ANY, accepted, ending, finished, replica, row, rows, status

from mailkeep.core.outcome import Scope, Severity
from mailkeep.store.migrate import LOCK_KEY, MigrationError, migrate, migrations, schema_version
from mailkeep.store.postgres import PARTITION_DAYS_AHEAD, PARTITION_DAYS_BEHIND, Store

BEFORE_4 = """
WITH delivered AS (
    INSERT INTO mail.deliveries (id, source, class, guarantee, status, next_hop, accepted_at, due_at, recipient_states,
        recipient_domain, size_bytes, sensitive)
    SELECT mail.new_id(), 'api', 'transactional', 'at_least_once', 'rendered', 'default', mail.now(), mail.now(), 'o',
           'example.org', 1, false
    RETURNING id
), kept AS (
    INSERT INTO mail.payloads (delivery_id, sender, recipients, message)
    SELECT id, 'mail@example.org', '{ann@example.org}', 'm' FROM delivered
), changed AS (
    INSERT INTO mail.operator_changes (delivery_id, verb, status, actor, reason)
    SELECT id, 'hold', 'held', 'ann', 'why' FROM delivered
)
SELECT id FROM delivered
"""
MIGRATOR = """
import asyncio, sys, asyncpg
from mailkeep.store.migrate import migrate

async def main():
    connection = await asyncpg.connect(sys.argv[1], server_settings={"application_name": "migrator"})
    await migrate(connection)

asyncio.run(main())
"""


@asynccontextmanager
async def connected(dsn):
    """Lend a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def empty_dsn(cluster):
    """Yield the DSN of a database without a schema."""
    name = f"empty_{uuid4().hex[:12]}"
    async with connected(cluster) as admin:
        await admin.execute(f"CREATE DATABASE {name}")
        yield urlsplit(cluster)._replace(path=f"/{name}").geturl()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def _applied(dsn):
    async with connected(dsn) as connection:
        return await migrate(connection)


async def _tables(dsn):
    async with connected(dsn) as connection:
        found = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'mail'")
        return {record["tablename"] for record in found}


async def test_ten_starts_at_once_migrate_once(empty_dsn):
    """Of ten that start together one applies everything, the others wait for it and find nothing left to do."""
    applied = await asyncio.gather(*(_applied(empty_dsn) for _ in range(10)))
    assert sorted(map(len, applied)) == [0] * 9 + [len(migrations())]
    async with connected(empty_dsn) as connection:
        assert await schema_version(connection) == migrations()[-1].version


async def test_ten_stores_open_at_once(empty_dsn):
    """Ten replicas on a new database all come up, with one key and the partitions of each day made once."""
    stores = await asyncio.gather(*(Store.open(empty_dsn, pool_size=1) for _ in range(10)))
    try:
        assert len({store.hash_key for store in stores}) == 1
    finally:
        await asyncio.gather(*(store.close() for store in stores))
    assert (
        len([name for name in await _tables(empty_dsn) if name.startswith("deliveries_p")])
        == PARTITION_DAYS_BEHIND + 1 + PARTITION_DAYS_AHEAD
    )


async def test_a_migrated_schema_is_left_alone(dsn):
    """Migrating what is up to date applies nothing."""
    assert await _applied(dsn) == []


async def test_a_start_waits_for_no_lock_where_nothing_is_missing(dsn):
    """A replica that stands still while it holds the lock of migrations holds up no other's start."""
    async with connected(dsn) as frozen, frozen.transaction():
        await frozen.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
        assert await asyncio.wait_for(_applied(dsn), 10) == []


async def test_no_schema_has_no_version(empty_dsn):
    """Where nothing was migrated there is no version."""
    async with connected(empty_dsn) as connection:
        assert await schema_version(connection) is None


async def test_a_migration_that_was_killed_half_way_leaves_nothing(empty_dsn):
    """A process killed in the middle of its statements leaves an empty schema, and the next start completes it."""
    async with connected(empty_dsn) as connection, connected(empty_dsn) as other:
        await connection.execute("CREATE SCHEMA mail")
        # The migrator stops here: somebody else is about to make the same table, and it must wait to learn whether.
        blocking = other.transaction()
        await blocking.start()
        await other.execute("CREATE TABLE mail.attempts (id int)")
        migrator = await asyncio.create_subprocess_exec(sys.executable, "-c", MIGRATOR, empty_dsn)
        while not await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'migrator' AND wait_event_type = 'Lock'"
        ):
            assert migrator.returncode is None
            await asyncio.sleep(0.02)
        os.kill(migrator.pid, signal.SIGKILL)
        assert await migrator.wait() == -signal.SIGKILL
        await blocking.rollback()
        while await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'migrator'"
        ):
            await asyncio.sleep(0.02)
    assert await _tables(empty_dsn) == set()
    assert len(await _applied(empty_dsn)) == len(migrations())
    assert {"deliveries", "attempts"} <= await _tables(empty_dsn)


async def test_a_role_that_may_not_create_schemas_uses_the_one_it_was_given(empty_dsn):
    """An administrator may make the schema beforehand; the service then needs no right on the database."""
    role = "store_without_rights"
    async with connected(empty_dsn) as admin:
        database = await admin.fetchval("SELECT current_database()")
        await admin.execute(f"CREATE ROLE {role} LOGIN")
        await admin.execute(f"REVOKE CREATE ON DATABASE {database} FROM PUBLIC")
        await admin.execute(f"CREATE SCHEMA mail AUTHORIZATION {role}")
        try:
            user_dsn = empty_dsn.replace("postgresql://mailkeep@", f"postgresql://{role}@")
            async with connected(user_dsn) as user:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await user.execute("CREATE SCHEMA other")
            store = await Store.open(user_dsn, pool_size=1)
            assert len(store.hash_key) == 32
            await store.close()
        finally:
            await admin.execute(f"DROP OWNED BY {role} CASCADE")
            await admin.execute(f"DROP ROLE {role}")


async def test_a_changed_migration_stops_the_start(dsn):
    """A file that differs from what was applied is refused by name, and nothing is touched."""
    async with connected(dsn) as connection:
        await connection.execute("UPDATE mail.schema_migrations SET checksum = 'other' WHERE version = 1")
    first = migrations()[0]
    with pytest.raises(MigrationError, match=f"{first.version:04d}_{first.name}"):
        await Store.open(dsn, pool_size=1)
    async with connected(dsn) as connection:
        assert (
            await connection.fetchval("SELECT checksum FROM mail.schema_migrations WHERE version = 1")
            == "other"
        )


async def test_a_newer_schema_is_usable(dsn):
    """A build runs on the schema of the next one, as it must while a deployment rolls on."""
    async with connected(dsn) as connection:
        await connection.execute(
            "INSERT INTO mail.schema_migrations (version, name, checksum) VALUES (9999, 'later', 'x')"
        )
    assert await _applied(dsn) == []


async def test_a_queue_of_schema_3_gets_its_suppressions(empty_dsn, monkeypatch):
    """Deliveries and changes of before stay as they are, wait, are claimed and sent; from then on addresses are suppressed."""
    everything = migrations()
    monkeypatch.setattr("mailkeep.store.migrate.migrations", lambda: everything[:3])
    assert len(await _applied(empty_dsn)) == 3
    async with connected(empty_dsn) as connection:
        await connection.execute("SELECT mail.ensure_partitions(current_date - 1, current_date + 1)")
        delivery_id = await connection.fetchval(BEFORE_4)
    monkeypatch.undo()
    store = await Store.open(empty_dsn, pool_size=2)
    try:
        assert (await row(store, delivery_id))["suppressed_because"] is None
        (changed,) = await rows(store, "SELECT * FROM mail.operator_changes")
        assert (changed["verb"], changed["delivery_id"], changed["address_hash"]) == (
            "hold",
            delivery_id,
            None,
        )
        (claim,) = await store.claim_due(await replica(store), ANY, 10)
        assert await store.suppress([claim]) == []
        bounce = ending(claim, Severity.PERMANENT, scope=Scope.RECIPIENT, suppress=True)
        await store.finish([finished(claim, bounce)])
        assert await status(store, await accepted(store)) == "suppressed"
    finally:
        await store.close()


def test_migrations_are_numbered_without_gaps():
    """Versions count from 1, so that the order of files is the order of time."""
    assert [migration.version for migration in migrations()] == list(range(1, len(migrations()) + 1))
    assert len({migration.checksum for migration in migrations()}) == len(migrations())
