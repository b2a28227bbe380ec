"""PgBouncer in transaction mode, where every statement may meet another server connection: replicas share it and nothing changes."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import QUICK, Database, Deployment, Load, mails, smokes, submit_all, until

from pgbouncer import PgBouncer, needs_pgbouncer

SERVER_CONNECTIONS = 3
AT_MOST_ONCE = {"MAIL_GUARANTEE_TRANSACTIONAL": "at_most_once"}

pytestmark = needs_pgbouncer


@pytest.fixture
def pgbouncer(database: Database) -> Iterator[PgBouncer]:
    """Run a pooler before the test's database."""
    with tempfile.TemporaryDirectory(prefix="mk-pgb-") as folder:
        pooler = PgBouncer(Path(folder), database.dsn, SERVER_CONNECTIONS).start()
        yield pooler
        pooler.kill9()


@pytest.mark.parametrize("environ", [{}, AT_MOST_ONCE], ids=["least", "most"])
def test_replicas_share_few_connections(
    deployment: Deployment, pgbouncer: PgBouncer, environ: dict[str, str]
):
    """Two replicas with eight connections over three of the server: everything goes once, nobody meets another's statement."""
    sink = deployment.told_sink()
    settings = {"MAIL_POSTGRES_DSN": pgbouncer.dsn, **QUICK, "MAIL_REPLICA_TTL": "30s", **environ}
    services = [deployment.service(sink.port, name=f"replica{number}", **settings) for number in range(2)]
    for service in services:
        service.spawn()
    for service in services:
        service.ready()
    submissions = mails(150, scripts=("", "", "", "defer-1x+"))
    load = Load([service.port for service in services], submissions)
    load.wait()
    submit_all(services[0], submissions)
    deployment.database.drain()
    ledger = deployment.database.check(submissions, sink.copies)
    assert len(ledger.copies) == len(submissions)
    for service in services:
        assert service.logged("a pooler stands before PostgreSQL: new mail is looked for, not heard of")
        assert [line for line in service.lines if line["level"] == "error"] == []
    assert deployment.database.value(SHARED) <= SERVER_CONNECTIONS


SHARED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'mailkeep'"


def test_a_pooler_that_is_killed_is_survived(deployment: Deployment, pgbouncer: PgBouncer):
    """Killed in mid-stream and started again: what was taken is sent, what was not is taken when it is repeated."""
    sink = deployment.told_sink()
    environ = {"MAIL_POSTGRES_DSN": pgbouncer.dsn, **QUICK, "MAIL_REPLICA_TTL": "30s"}
    service = deployment.service(sink.port, **environ).start()
    submissions = mails(150)
    load = Load([service.port], submissions)
    until(lambda: load.taken_count >= 40, "the load is in full swing")
    pgbouncer.kill9()
    pgbouncer.start()
    load.wait()
    submit_all(service, submissions)
    deployment.database.drain()
    ledger = deployment.database.check(submissions, sink.copies)
    assert len(ledger.copies) == len(submissions)
    assert smokes(service.port or 0)
