"""PostgreSQL goes away under a running service: callers are told to come back, nothing answered is lost."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from http_kit import BATCH, DELIVERIES, FLUSH, LOGIN_CODES, command, login_code

from mailkeep.store.embedded import start_postgres

RETURN_S = 60.0


class Stoppable:
    """A PostgreSQL of the test's own, to be stopped and started."""

    def __init__(self, folder):
        self._folder = folder
        self.start()
        self.dsn = self._server.dsn

    def start(self):
        self._server = start_postgres(self._folder, fast_unsafe=True)

    def stop(self):
        self._server.stop()


@pytest.fixture
def postgres():
    """Run a PostgreSQL that only this test uses."""
    folder = Path(tempfile.mkdtemp(prefix="mk-outage-"))
    folder.chmod(0o755)  # PostgreSQL may run as another user
    running = Stoppable(folder)
    yield running
    running.stop()
    shutil.rmtree(folder)


@pytest.fixture
def dsn(postgres):
    """Let `serve` use that PostgreSQL."""
    return postgres.dsn


def check_unavailable(answer):
    """Check that `answer` says to come back, and tells nothing of the reason's words."""
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), answer.text
    assert answer.headers["retry-after"] == "1"
    assert "PostgreSQL" not in answer.text


async def test_calls_are_refused_while_postgres_is_away_and_taken_when_it_is_back(serve, postgres):
    """Every call answers 503 with Retry-After during an outage; the repeated call is then one delivery, the old one is there."""
    served = await serve(MAIL_REPLICA_TTL="60s")
    before = await served.post(DELIVERIES, command(), key="before")
    await asyncio.to_thread(postgres.stop)
    for _ in range(2):
        check_unavailable(await served.post(DELIVERIES, command(), key="k"))
        check_unavailable(await served.post(LOGIN_CODES, login_code(), key="k"))
        check_unavailable(await served.post(BATCH, {"commands": [command(), command()]}, key="k"))
        check_unavailable(await served.post(FLUSH, {"all": True}))
        check_unavailable(await served.get(DELIVERIES))
    refused = await served.post(DELIVERIES, command(payload={"to": ["nobody"]}))
    assert refused.status_code == 422
    await asyncio.to_thread(postgres.start)
    async with asyncio.timeout(RETURN_S):
        while (after := await served.post(DELIVERIES, command(), key="k")).status_code == 503:
            await asyncio.sleep(0.1)
    assert after.status_code == 202
    again = await served.post(DELIVERIES, command(), key="before")
    assert again.content == before.content
    assert again.headers["idempotent-replayed"] == "true"
    listed = (await served.get(DELIVERIES)).json()["deliveries"]
    assert [delivery["delivery_id"] for delivery in listed] == [
        after.json()["delivery_id"],
        before.json()["delivery_id"],
    ]
