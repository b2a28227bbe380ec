"""A real PostgreSQL for tests: one cluster a test session (each xdist worker has its own), a fresh database each test."""

import asyncio
import os
import shutil
import signal
import tempfile
import threading
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

# A shell that began this in the background has it ignore Ctrl-C, and so would every process that a test begins and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TEMPLATE = "migrated"
MIN_FREE_BYTES = 4 * 1024**3


@pytest.hookimpl(optionalhook=True)  # also without xdist
def pytest_xdist_auto_num_workers(config):
    """Return how many workers `-n auto` means: tests wait for other processes and timers half of their time."""
    return 2 * (os.cpu_count() or 1)


def _free_bytes(folder):
    return shutil.disk_usage(folder).free


def _rank(item):
    return 0 if item.get_closest_marker("long") else 1 if item.path.parent.name == "acceptance" else 2


@pytest.hookimpl(trylast=True)  # after the order was shuffled
def pytest_collection_modifyitems(items):
    """Let every worker begin with its part of what takes long, so that the run does not end with one of those alone."""
    ranks = {item: _rank(item) for item in items}
    first = sorted((item for item in items if ranks[item] < 2), key=ranks.__getitem__)
    rest = [item for item in items if ranks[item] == 2]
    total, count = len(items), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items.clear()
    for number in range(count):
        own = first[number::count]
        # As many for each as `--dist worksteal` gives it.
        filling = (total - len(items)) // (count - number) - len(own)
        items += own + rest[: max(filling, 0)]
        del rest[: max(filling, 0)]
    items += rest


class Maintenance:
    """A connection that stays, to the maintenance database of a cluster: it makes and drops others.

    It has a loop in a thread of its own, so that sync fixtures leave the test's own loop alone.
    """

    def __init__(self, dsn):
        self.dsn = dsn
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._connection = self.run(asyncpg.connect(dsn))

    def run(self, coroutine):
        """Run `coroutine` on the loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def value(self, statement):
        """Run one statement and return its value."""
        return self.run(self._connection.fetchval(statement))

    def with_database(self, name):
        """Return the DSN of another database."""
        return urlsplit(self.dsn)._replace(path=f"/{name}").geturl()

    def close(self):
        """Close the connection and end the loop."""
        self.run(self._connection.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _migrate(dsn):
    opened = await Store.open(dsn, pool_size=1)
    await opened.close()


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
def maintenance(cluster):
    """Keep a connection to the maintenance database."""
    opened = Maintenance(cluster)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def copy_of_template(maintenance):
    """Make a migrated database that each test's own is copied from; yields the clause that does it."""
    maintenance.value(f"CREATE DATABASE {TEMPLATE}")
    maintenance.run(_migrate(maintenance.with_database(TEMPLATE)))
    # To copy its files is quickest; PostgreSQL 14 knows no other way, and no name for it.
    is_named = int(maintenance.value("SHOW server_version_num")) >= 150_000
    return f"TEMPLATE {TEMPLATE} {'STRATEGY FILE_COPY' if is_named else ''}"


@pytest.fixture
def dsn(maintenance, copy_of_template):
    """Yield the DSN of a migrated, empty database."""
    name = f"test_{uuid4().hex[:12]}"
    maintenance.value(f"CREATE DATABASE {name} {copy_of_template}")
    yield maintenance.with_database(name)
    maintenance.value(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def store(dsn):
    """Yield a store over an empty database."""
    opened = await Store.open(dsn, pool_size=4)
    yield opened
    await opened.close()
