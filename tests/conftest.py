"""A real PostgreSQL for tests: one cluster a test session (each xdist worker has its own), a fresh database each test."""

import asyncio
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from mailkeep.store.embedded import start_postgres
from mailkeep.store.postgres import Store

# A slow or busy machine is no fault of the code: examples are bounded in number, not in time.
settings.register_profile("mailkeep", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mailkeep")

TEMPLATE = "migrated"
MIN_FREE_BYTES = 4 * 1024**3


@pytest.hookimpl(optionalhook=True)  # also without xdist
def pytest_xdist_auto_num_workers(config):
    """Return how many workers `-n auto` means: tests wait for other processes and timers half of their time."""
    return 2 * (os.cpu_count() or 1)


def _free_bytes(folder):
    return shutil.disk_usage(folder).free


def run_apart(coroutine):
    """Run `coroutine` on a loop of another thread, so that sync fixtures leave the test's own loop alone."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def with_database(dsn, name):
    """Return `dsn` with another database."""
    return urlsplit(dsn)._replace(path=f"/{name}").geturl()


async def _execute(dsn, statement):
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def _migrate(dsn):
    store = await Store.open(dsn, pool_size=1)
    await store.close()


@pytest.fixture(scope="session")
def cluster():
    """Run the session's PostgreSQL; yields the DSN of its maintenance database."""
    in_memory = Path(
        "/dev/shm"
    )  # a database a test: on a disk, making and dropping them takes most of the time
    place = in_memory if os.access(in_memory, os.W_OK) and _free_bytes(in_memory) > MIN_FREE_BYTES else None
    data_dir = Path(tempfile.mkdtemp(prefix="mk-pg-", dir=place))
    data_dir.chmod(0o755)  # PostgreSQL may run as another user
    server = start_postgres(data_dir, fast_unsafe=True)
    yield server.dsn
    server.stop()
    shutil.rmtree(data_dir)


@pytest.fixture(scope="session")
def template_database(cluster):
    """Make a migrated database that each test's own is copied from."""
    run_apart(_execute(cluster, f"CREATE DATABASE {TEMPLATE}"))
    run_apart(_migrate(with_database(cluster, TEMPLATE)))
    return cluster


@pytest.fixture(scope="session")
def copying(cluster):
    """The clause that copies a template's files; PostgreSQL 14 knows no other way, and no name for it."""
    version = run_apart(_execute(cluster, "SHOW server_version_num"))
    return "STRATEGY FILE_COPY" if int(version) >= 150_000 else ""


@pytest.fixture
def dsn(template_database, copying):
    """Yield the DSN of a migrated, empty database."""
    name = f"test_{uuid4().hex[:12]}"
    create = f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} {copying}"
    run_apart(_execute(template_database, create))
    yield with_database(template_database, name)
    run_apart(_execute(template_database, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def store(dsn):
    """Yield a store over an empty database."""
    opened = await Store.open(dsn, pool_size=4)
    yield opened
    await opened.close()
