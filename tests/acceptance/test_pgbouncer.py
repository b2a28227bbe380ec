"""PgBouncer in transaction mode, where every statement may meet another server connection: replicas share it and nothing changes."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from harness import QUICK, Database, Deployment, Load, free_port, mails, smokes, submit_all, until

from mailkeep.store.embedded_process import unprivileged_identity

PGBOUNCER = "/usr/sbin/pgbouncer"
EXAMPLE = Path(__file__).parents[2] / "docs/how-to/patroni/pgbouncer.ini"
SERVER_CONNECTIONS = 3
AT_MOST_ONCE = {"MAIL_GUARANTEE_TRANSACTIONAL": "at_most_once"}

pytestmark = pytest.mark.skipif(
    not os.access(PGBOUNCER, os.X_OK), reason="pgbouncer is not installed (see .ci/run)"
)


class PgBouncer:
    """A pooler of the test's own before one database, set up as the docs say."""

    def __init__(self, folder: Path, database: Database) -> None:
        self._folder, self.port = folder, free_port()
        socket_folder = parse_qs(urlsplit(database.dsn).query)["host"][0]
        self.dsn = f"postgresql://mailkeep@127.0.0.1:{self.port}/{database.name}?sslmode=disable"
        text = EXAMPLE.read_text()
        for place, own in {
            "mailkeep = host=10.0.0.31 port=5432 dbname=mailkeep": f"{database.name} = host={socket_folder} port=5432",
            "10.0.0.41": "127.0.0.1",
            "6432": str(self.port),
            "scram-sha-256": "trust",
            "/etc/pgbouncer/userlist.txt": str(folder / "userlist.txt"),
            "default_pool_size = 20": f"default_pool_size = {SERVER_CONNECTIONS}\nunix_socket_dir =",
        }.items():
            assert place in text
            text = text.replace(place, own)
        (folder / "pgbouncer.ini").write_text(text)
        (folder / "userlist.txt").write_text('"mailkeep" ""\n')

    def start(self) -> None:
        """Start it, or start it again."""
        command = [*unprivileged_identity().prefix, PGBOUNCER, str(self._folder / "pgbouncer.ini")]
        with (self._folder / "pgbouncer.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        until(self._listens, "PgBouncer listens")

    def _listens(self) -> bool:
        with suppress(OSError):
            Database(self.dsn).fetch("SELECT 1")
            return True
        return False

    def kill9(self) -> None:
        """Kill it."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def pgbouncer(database: Database) -> Iterator[PgBouncer]:
    """Run a pooler before the test's database."""
    with tempfile.TemporaryDirectory(prefix="mk-pgb-") as folder:
        Path(folder).chmod(0o755)
        pooler = PgBouncer(Path(folder), database)
        pooler.start()
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
