"""PostgreSQL goes away under the consumers of stream and inbox: nothing is acknowledged, and all is taken when it is back."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from stream_kit import Valkey, add, counted, drained, fields, pending, query, unread, until

from mailkeep.intake import stream
from mailkeep.store.embedded import start_postgres

LONG = {"MAIL_REPLICA_TTL": "60s"}


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


@pytest.fixture
def valkey():
    """Run a server of the test's own, in a folder short enough for its socket."""
    folder = Path(tempfile.mkdtemp(prefix="mk-valkey-"))
    server = Valkey(folder).start()
    yield server
    server.stop()
    shutil.rmtree(folder)


def said(lines, event):
    """Return the lines of `event`."""
    return [line for line in lines if line["event"] == event]


async def test_nothing_is_read_or_acknowledged_until_it_is_back(serve, valkey, postgres, dsn, log_lines):
    """While PostgreSQL is away one batch at most is read, none acknowledged, and that is said once; then all is taken."""
    await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket), **LONG)
    add(valkey, fields(0))
    await drained(valkey)
    await asyncio.to_thread(postgres.stop)
    add(valkey, *(fields(number) for number in range(1, 1001)))
    await until(lambda: pending(valkey), "a batch is read")
    await asyncio.sleep(4)
    assert 0 < pending(valkey) <= stream.BATCH
    assert unread(valkey) == 1000 - pending(valkey)
    assert len(said(log_lines, "stream commands wait for PostgreSQL")) == 1
    await asyncio.to_thread(postgres.start)
    await drained(valkey)
    await counted(dsn, 1001)
    assert len(said(log_lines, "stream commands are taken again")) == 1


async def test_a_stop_is_prompt_while_it_is_away(serve, valkey, postgres):
    """A service that waits for PostgreSQL with a batch in hand stops within its shutdown timeout, and leaves all pending."""
    served = await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket), **LONG)
    await asyncio.to_thread(postgres.stop)
    add(valkey, *(fields(number) for number in range(10)))
    await until(lambda: pending(valkey), "a batch is read")
    async with asyncio.timeout(20):
        await served.service.stop()
    assert pending(valkey) + unread(valkey) == 10


async def test_the_inbox_of_sql_is_taken_when_it_is_back(serve, postgres, dsn, log_lines):
    """Commands that were committed before an outage, or just after it, become deliveries; the outage is said once."""
    await serve(**LONG)
    enqueue = "SELECT mail.enqueue($1::text::jsonb)"
    text = '{"payload_mode": "rendered", "payload": {"to": ["ann@example.org"], "subject": "s", "text": "t"}}'
    await query(dsn, enqueue, text)
    await counted(dsn, 1)
    await asyncio.to_thread(postgres.stop)
    await until(lambda: said(log_lines, "enqueued commands wait for PostgreSQL"), "the outage is noticed")
    await asyncio.sleep(3)
    await asyncio.to_thread(postgres.start)
    await query(dsn, enqueue, text)
    await counted(dsn, 2)
    await until(lambda: said(log_lines, "enqueued commands are taken again"), "its end is told")
    assert len(said(log_lines, "enqueued commands wait for PostgreSQL")) == 1
    assert len(said(log_lines, "enqueued commands are taken again")) == 1
