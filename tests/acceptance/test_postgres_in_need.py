"""PostgreSQL lives and can't: disk full, read-only, no connection free, tables locked. Nothing is acknowledged that is not stored."""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

import asyncpg
import pytest
from harness import (
    QUICK,
    TEMPLATE,
    Cluster,
    Database,
    Deployment,
    Load,
    mails,
    migrate,
    rendered,
    submit,
    submit_all,
    unanswered,
    until,
)

from mailkeep.drill.ledger import Submission

DISK_MB = 160
LARGE_BYTES = 60_000
OWN = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mailkeep' AND datname = current_database()"
TERMINATE = OWN.replace("count(*)", "pg_terminate_backend(pid)")
LOCKED_S = 4.0


@pytest.fixture
def database(own_postgres: Cluster) -> Database:
    """Make a database in a PostgreSQL of these tests' own."""
    return own_postgres.database(TEMPLATE)


def refusals(submissions: list[Submission]) -> set[int | None]:
    """Return the statuses of answers that are no promise."""
    answers = [answer for submission in submissions for answer in submission.answers]
    return {answer.status if answer else None for answer in answers if not (answer and answer.delivery_id)}


def test_a_server_that_may_only_be_read_acknowledges_nothing(deployment: Deployment, own_postgres: Cluster):
    """Before a standby is promoted: 503 to everybody; afterwards the same service goes on, also with what it had in flight."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, **QUICK).start()
    before, after = mails(20, scripts=("", "defer-1x+")), mails(20)
    submit_all(service, before)
    with settings(own_postgres, default_transaction_read_only="on"):
        submit(service, after)
        assert refusals(after) == {503}
        assert not any(submission.ids for submission in after)
        submit(
            service, before
        )  # not even what is known already: who may only read can't tell that it is replicated
        assert not any(submission.answers[-1].delivery_id for submission in before)
    for submission in before:
        submission.answers.pop()
    submit_all(service, after)
    deployment.database.drain()
    ledger = deployment.database.check([*before, *after], sink.copies)
    assert len(ledger.copies) == len(ledger.deliveries)


@contextmanager
def settings(own_postgres: Cluster, **values: str) -> Iterator[None]:
    """Change settings of the server while it runs."""
    admin = own_postgres.maintenance
    for name, value in values.items():
        admin.fetch(f"ALTER SYSTEM SET {name} = '{value}'")
    admin.fetch("SELECT pg_reload_conf()")
    until(lambda: all(admin.value(f"SHOW {name}") == value for name, value in values.items()), "it is set")
    try:
        yield
    finally:
        for name in values:
            admin.fetch(f"ALTER SYSTEM RESET {name}")
        admin.fetch("SELECT pg_reload_conf()")


def test_no_connection_left_is_survived(deployment: Deployment):
    """Others have every connection and the service has lost its own: callers get 503 until there are some again."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, **QUICK).start()
    before, after = mails(8), mails(20)
    submit_all(service, before)
    with Hog(deployment.database) as hog:
        hog.take_all()
        submit(service, after)
        assert refusals(after) == {503}
    submit_all(service, after)
    deployment.database.drain()
    deployment.database.check([*before, *after], sink.copies)


class Hog:
    """Takes every connection that PostgreSQL has."""

    def __init__(self, database: Database) -> None:
        self._dsn, self._loop = database.dsn, asyncio.new_event_loop()
        self._held: list[asyncpg.Connection[asyncpg.Record]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        for connection in self._held:
            connection.terminate()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def take_all(self) -> None:
        """Leave none to others, who may have some now."""
        self._loop.run_until_complete(self._take_all())

    async def _take_all(self) -> None:
        async with asyncio.timeout(60):
            while True:
                with suppress(asyncpg.TooManyConnectionsError):
                    while True:
                        self._held.append(await asyncpg.connect(self._dsn))
                if not await self._held[0].fetchval(OWN):
                    return
                await self._held[0].execute(TERMINATE)


def test_locked_tables_are_waited_for(deployment: Deployment):
    """Four seconds in which no delivery can be touched: calls wait, nobody is declared lost, nothing is refused."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, **QUICK).start()
    submissions = mails(60)
    load = Load([service.port], submissions)
    until(lambda: load.taken_count >= 10, "the load is under way")
    lock_for(deployment.database, LOCKED_S)
    load.wait()
    assert list(unanswered(submissions)) == []
    deployment.database.drain()
    ledger = deployment.database.check(submissions, sink.copies)
    assert len(ledger.copies) == len(submissions)
    assert service.logged("replica was declared lost and starts anew") == []


def lock_for(database: Database, seconds: float) -> None:
    """Let nobody at the deliveries for some time."""

    async def run() -> None:
        connection = await asyncpg.connect(database.dsn)
        async with connection.transaction():
            await connection.execute("LOCK TABLE mail.deliveries IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(seconds)
        await connection.close()

    asyncio.run(run())


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk of its own needs root to mount it")
@pytest.mark.long
def test_a_full_disk_loses_nothing(deployment: Deployment):
    """Data and log have no room: what can't be stored is refused; with room again everything goes on, at most after a restart of PostgreSQL."""
    cluster = Cluster()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=0755", "tmpfs", cluster.folder], check=True
    )
    try:
        cluster.start()
        deployment.database = database = cluster.database()
        migrate(database)
        database.watch()
        sink = deployment.told_sink()
        service = deployment.service(sink.port, **QUICK).start()
        before, during = mails(20), [large(number) for number in range(200)]
        submit_all(service, before)
        filler = cluster.folder / "filler"
        fill(filler, leave_bytes=4_000_000)
        submit(service, during)
        taken = sum(bool(submission.ids) for submission in during)
        assert taken < len(during)
        assert refusals(during) == {503}
        filler.unlink()
        cluster.ensure_running()
        began_s = time.monotonic()
        submit_all(service, during)
        print(f"{taken} taken while it filled; taken again after {time.monotonic() - began_s:.1f} s")  # noqa: T201 - the measured figure
        database.drain()
        database.check([*before, *during], sink.copies)
    finally:
        service.end()
        cluster.remove(keep_folder=True)
        subprocess.run(["umount", "-l", cluster.folder], check=True)
        cluster.folder.rmdir()


def large(number: int) -> Submission:
    """Return a mail that nothing can make smaller."""
    submission = rendered([f"large-{number}@sinkhole.test"])
    submission.body["payload"]["text"] = os.urandom(LARGE_BYTES // 2).hex()
    return submission


def fill(file, *, leave_bytes: int) -> None:
    """Fill the disk that `file` is on."""
    room = os.statvfs(file.parent)
    with file.open("wb") as filler:
        filler.write(bytes(max(room.f_bavail * room.f_frsize - leave_bytes, 0)))
