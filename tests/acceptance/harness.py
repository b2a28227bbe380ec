"""What acceptance tests are made of: real processes that are killed for real, and the records to judge them by.

`Cluster` is an embedded PostgreSQL with fsync on, `Database` one test's queue in it, `Service` a `mailkeep serve` process,
`SinkProcess` and `SinkThread` are next hops (the second one can act at the very moment a dialog reaches a point), `Load`
submits mail over HTTP. `Database.ledger` gathers what `ledger.check_ledger` judges. Nothing here looks inside Mailkeep:
it sees what operators see, and the database.
"""

import asyncio
import http.client
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import psutil

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.drill.ledger import SENT, Copy, Ledger, Submission, check_ledger
from mailkeep.drill.producer import (  # noqa: F401 - tests take some of it from here
    API,
    DELIVERIES,
    LOGIN_CODES,
    login_code,
    mail,
    post,
    rendered,
)
from mailkeep.drill.witness import read_ledger, watch
from mailkeep.sinkhole.capture import Capture, Captured, read_capture_file
from mailkeep.sinkhole.mode_source import write_mode_file
from mailkeep.sinkhole.report import Exchange
from mailkeep.sinkhole.script import Mode, parse_mode
from mailkeep.sinkhole.server import Sinkhole
from mailkeep.store.embedded import EmbeddedError, EmbeddedPostgres, start_postgres
from nursery import Child, nursery, ran

SMOKE: Final = f"{DELIVERIES}/00000000-0000-0000-0000-000000000000"

PATIENCE_S: Final = 90.0
"""For anything that happens by itself: generous, since the machine may be slow and busy; idle, it is a second or two."""
LOOK_S: Final = 0.02
"""Between two looks at other processes, which tell of nothing: short against the 200 ms of the quickest heartbeat."""
REQUEST_TIMEOUT_S: Final = 30.0
SENDER: Final = "mail@acceptance.example.org"
TEMPLATE: Final = "migrated"

QUICK: Final = {
    "MAIL_REPLICA_HEARTBEAT": "200ms",
    "MAIL_REPLICA_TTL": "2s",
    "MAIL_RETRY_LADDER_AUTH": "200ms, 500ms, 1s, 1s, 1s, 1s, 1s, 1s",
    "MAIL_RETRY_LADDER_TRANSACTIONAL": "200ms, 500ms, 1s, 1s, 1s, 1s, 1s, 1s",
}
"""Settings that make takeovers and retries quick. A replica that stalls for a second is lost, and says so."""


AT_START: Final = frozenset({"LD_PRELOAD", "PYTHONPATH", "--processes"})
"""Variables that are read when a process begins, and the option with which it begins others like itself."""


def until(condition: Callable[[], Any], what: str, within_s: float = PATIENCE_S) -> Any:
    """Return the first true answer of `condition`, polled; fail, naming `what` was awaited, after `within_s`."""
    deadline_s = time.monotonic() + within_s
    while not (answer := condition()):
        assert time.monotonic() < deadline_s, f"waited {within_s:g} s in vain until {what}"
        time.sleep(LOOK_S)
    return answer


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


def own_environment(**environ: str) -> dict[str, str]:
    """Return this process's environment without anybody's MAIL_*, and with `environ`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MAIL_")} | environ


class Cluster:
    """An embedded PostgreSQL that may be killed, frozen and started again; `start` it first."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mk-acc-"))
        self.folder.chmod(0o755)  # PostgreSQL may run as another user
        self._server: EmbeddedPostgres | None = None

    def start(self) -> None:
        """Start it, or start it again after it was killed."""
        if self._server is not None:
            self._server.stop()
        # Backends of a killed server live on for a moment and hold its shared memory.
        self._server = until(self._started, "PostgreSQL starts")

    def _started(self) -> EmbeddedPostgres | None:
        with suppress(EmbeddedError):
            return start_postgres(self.folder)
        return None

    def remove(self, *, keep_folder: bool = False) -> None:
        """End it, without the checkpoint that nobody needs any more, and remove its data."""
        assert self._server is not None
        self.kill9()
        self._server.stop()
        if not keep_folder:
            shutil.rmtree(self.folder)

    def ensure_running(self) -> None:
        """Start it again if it ended by itself."""
        assert self._server is not None
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(self._server.pid).status() != psutil.STATUS_ZOMBIE:
                until(self._answers, "it has recovered")
                return
        self.start()

    def _answers(self) -> bool:
        with suppress(OSError, asyncpg.PostgresError):
            return bool(self.maintenance.value("SELECT 1"))
        return False

    @property
    def maintenance(self) -> "Database":
        """The database that is always there."""
        assert self._server is not None
        return Database(self._server.dsn)

    def signal(self, number: signal.Signals) -> None:
        """Send `number` to the server process and to all its children."""
        assert self._server is not None
        server = psutil.Process(self._server.pid)
        for process in [server, *server.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill9(self) -> None:
        """Kill the server process; its children see that and leave by themselves, as after a crash."""
        assert self._server is not None
        with suppress(ProcessLookupError):
            os.kill(self._server.pid, signal.SIGKILL)

    def database(self, template: str = "template1") -> "Database":
        """Make a new database from `template` and return it."""
        assert self._server is not None
        name = f"acc_{uuid4().hex[:12]}"
        self.maintenance.fetch(f"CREATE DATABASE {name} TEMPLATE {template}")
        return Database(urlsplit(self._server.dsn)._replace(path=f"/{name}").geturl())


class Database:
    """One test's queue."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    @property
    def name(self) -> str:
        """The name of the database."""
        return urlsplit(self.dsn).path.strip("/")

    def as_role(self, name: str) -> str:
        """Return the DSN under a login of its own (made here), by which its changes are told from others'."""
        if not self.fetch("SELECT FROM pg_roles WHERE rolname = $1", name):
            self.fetch(f"CREATE ROLE {name} LOGIN SUPERUSER")
        parts = urlsplit(self.dsn)
        return parts._replace(netloc=f"{name}@").geturl()

    def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """Run one statement over a connection of its own."""

        async def run() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.dsn, timeout=PATIENCE_S)
            try:
                return await connection.fetch(statement, *arguments)
            finally:
                await connection.close()

        return asyncio.run(run())

    def value(self, statement: str, *arguments: object) -> Any:
        """Return the one value that `statement` answers."""
        ((value,),) = self.fetch(statement, *arguments)
        return value

    def watch(self) -> None:
        """Note every change of a delivery from now on. The schema must be there."""

        async def run() -> None:
            connection = await asyncpg.connect(self.dsn)
            try:
                await watch(connection)
            finally:
                await connection.close()

        asyncio.run(run())

    def statuses(self) -> dict[str, str]:
        """Return the status of every delivery by its id."""
        rows = self.fetch("SELECT id::text, status FROM mail.deliveries")
        return {row["id"]: row["status"] for row in rows}

    def commit_count(self, before: str | None, after: Sequence[str]) -> int:
        """Return in how many commits deliveries went from `before` (None: were born) to one of `after`."""
        count: int = self.value(
            "SELECT count(DISTINCT commit) FROM witness.moves"
            " WHERE before IS NOT DISTINCT FROM $1 AND after = ANY ($2)",
            before,
            list(after),
        )
        return count

    def drain(self, within_s: float = PATIENCE_S) -> None:
        """Wait until nothing waits or is being sent."""
        live = "SELECT status, count(*) FROM mail.deliveries WHERE status IN ('queued', 'rendered', 'sending') GROUP BY 1"
        left: list[asyncpg.Record] = []

        def is_empty() -> bool:
            left[:] = self.fetch(live)
            return not left

        try:
            until(is_empty, "the queue is empty", within_s)
        except AssertionError as fault:
            raise AssertionError(f"{fault}; left: {[tuple(row) for row in left]}") from None

    def ledger(
        self,
        submissions: Sequence[Submission],
        copies: Sequence[Copy],
        ends: frozenset[DeliveryStatus] = SENT,
    ) -> Ledger:
        """Gather the three records."""

        async def run() -> Ledger:
            connection = await asyncpg.connect(self.dsn, timeout=PATIENCE_S)
            try:
                return await read_ledger(connection, submissions, copies, sender=SENDER, ends=ends)
            finally:
                await connection.close()

        return asyncio.run(run())

    def check(
        self,
        submissions: Sequence[Submission],
        copies: Sequence[Copy],
        ends: frozenset[DeliveryStatus] = SENT,
    ) -> Ledger:
        """Gather the records, check them and return them."""
        found = self.ledger(submissions, copies, ends)
        check_ledger(found)
        return found


def migrate(database: Database) -> None:
    """Bring a database's schema up to date, as an operator does."""
    done = ran(["migrate"], own_environment(MAIL_POSTGRES_DSN=database.dsn))
    assert done.code == 0, done.errors


def make_template(cluster: Cluster) -> None:
    """Make the migrated and watched database that `Cluster.database` copies."""
    cluster.maintenance.fetch(f"CREATE DATABASE {TEMPLATE}")
    template = Database(urlsplit(cluster.maintenance.dsn)._replace(path=f"/{TEMPLATE}").geturl())
    migrate(template)
    template.watch()


# -- processes -----------------------------------------------------------------------------------------------------


class Process:
    """A `mailkeep` process of this test; its output goes to a file, one for each life.

    It comes from the nursery, or, where what a start from nothing does is part of the test, by the command line.
    """

    by_command = False

    def __init__(self, folder: Path, name: str, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        self.arguments, self.environ = list(arguments), dict(environ)
        self._folder, self._name, self._lives = folder, name, 0
        self._process: subprocess.Popen[bytes] | Child | None = None

    def spawn(self, **environ: str) -> None:
        """Start it, with `environ` in this life only."""
        self._lives += 1
        environ = own_environment(**self.environ, **environ)
        if not (self.by_command or AT_START & self.environ.keys() or AT_START & set(self.arguments)):
            self._process = nursery().bear(self.arguments, environ, self.log_file)
            return
        with self.log_file.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mailkeep", *self.arguments],
                env=environ,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def log_file(self) -> Path:
        """The output of this life."""
        return self._folder / f"{self._name}-{self._lives}.log"

    @property
    def output(self) -> str:
        """What it said in this life."""
        return self.log_file.read_text(errors="replace")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log lines of this life; a line that is being written is left out."""
        return [
            json.loads(line) for line in self.output.splitlines(keepends=True) if line[0] + line[-1] == "{\n"
        ]

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of `event` in this life."""
        return [line for line in self.lines if line.get("event") == event]

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs (or is frozen)."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill9(self) -> None:
        """Kill it and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """Kill it, and the processes it supervises."""
        if self._process is not None:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self.pid).children(recursive=True):
                    child.kill()
        self.kill9()

    def wait(self, within_s: float = PATIENCE_S) -> int:
        """Wait until it ends and return its exit code, negative for a signal."""
        assert self._process is not None
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self._name} did not end within {within_s:g} s: {self.tail}") from None

    @property
    def tail(self) -> str:
        """The end of what it said."""
        return "\n".join(self.output.splitlines()[-10:])


class Service(Process):
    """`mailkeep serve`."""

    def start(self, **environ: str) -> "Service":
        """Start it and return when it answers."""
        self.spawn(**environ)
        return self.ready()

    def ready(self) -> "Service":
        """Wait until it answers the smoke request of health checks."""

        def answers() -> bool:
            assert self.is_alive, f"the service ended with {self.wait()}: {self.tail}"
            return self.port is not None and smokes(self.port)

        until(answers, f"the service of {self.log_file.name} answers")
        return self

    @property
    def port(self) -> int | None:
        """Where it listens, as it said; None before."""
        started = self.logged("internal http listener started")
        return int(started[-1]["port"]) if started else None

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Make one request and return status and body."""
        assert self.port is not None
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_TIMEOUT_S)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()

    def flush(self, delivery_id: str | None = None) -> int:
        """Make due now what waits for a retry, or one delivery; answers how many."""
        wanted = {"delivery_id": delivery_id} if delivery_id else {"all": True}
        status, answer = self.call("POST", f"{API}/queue/flush", wanted)
        assert status == 200, answer
        return int(answer["flushed"])


def smokes(port: int) -> bool:
    """Whether a service answers at `port` as a healthy one does."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)
    try:
        connection.request("GET", SMOKE)
        response = connection.getresponse()
        response.read()
        return response.status == 404 and response.getheader("content-type") == "application/problem+json"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class SinkProcess(Process):
    """`mailkeep sinkhole run`."""

    def __init__(self, folder: Path, port: int = 0, mode: str = "accept") -> None:
        self.mode_file, self.capture_file = folder / "sinkhole.mode", folder / "capture.jsonl"
        self._port = port
        self.mode(mode)
        super().__init__(folder, "sinkhole", [], {})

    def mode(self, mode: str) -> None:
        """Choose the answers: for new connections, and for open ones from their next MAIL or RCPT on."""
        write_mode_file(self.mode_file, parse_mode(mode))

    def spawn(self, **environ: str) -> None:
        """Start it; `ready` waits for it."""
        self.arguments = ["sinkhole", "run", "--port", str(self._port), "--http", "off"]
        self.arguments += ["--mode-file", str(self.mode_file), "--capture-file", str(self.capture_file)]
        super().spawn(**environ)

    def ready(self) -> None:
        """Wait until it listens."""

        def listens() -> list[dict[str, Any]]:
            assert self.is_alive, f"the sinkhole ended with {self.wait()}: {self.tail}"
            return self.logged("sinkhole_started")

        self._port = until(listens, "the sinkhole listens")[0]["port"]

    @property
    def port(self) -> int:
        """Where it listens, in every life."""
        return self._port

    @property
    def copies(self) -> list[Copy]:
        """What it took so far, in all its lives."""
        return _copies(self.capture_file)


class SinkThread:
    """A sinkhole in a thread of the test, which tells the test what happens at the moment it happens.

    `on_look` is called when the mode is asked for (at each connection, MAIL and RCPT), `on_exchange` with each answer that
    did not take what was offered or is about a whole message, both before the reply leaves; `on_message` when a message was
    kept and not yet answered.
    """

    def __init__(
        self,
        folder: Path,
        mode: str = "accept",
        *,
        on_look: Callable[[], None] = lambda: None,
        on_exchange: Callable[[Exchange], None] = lambda _exchange: None,
        on_message: Callable[[], None] = lambda: None,
    ) -> None:
        self.capture_file = folder / "capture.jsonl"
        self._source = _ToldMode(parse_mode(mode), on_look)
        self._sinkhole = Sinkhole(
            self._source, _ToldCapture(self.capture_file, on_message), observe=on_exchange
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.port = 0

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        self._run(self._sinkhole.start())
        self.port = self._sinkhole.port

    def stop(self) -> None:
        """Cut what is open and end the thread."""
        self._run(self._sinkhole.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def mode(self, mode: str) -> None:
        """Choose the answers, as `SinkProcess.mode` does."""
        self._source.mode = parse_mode(mode)

    @property
    def connection_count(self) -> int:
        """How many connections are open."""
        return self._sinkhole.connection_count

    @property
    def copies(self) -> list[Copy]:
        """What it took so far."""
        return _copies(self.capture_file)

    def _run(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)


class _ToldMode:
    def __init__(self, mode: Mode, on_look: Callable[[], None]) -> None:
        self.mode, self._on_look = mode, on_look

    def current(self) -> Mode:
        self._on_look()
        return self.mode

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


class _ToldCapture(Capture):
    def __init__(self, file: Path, on_message: Callable[[], None]) -> None:
        super().__init__(file)
        self._on_message = on_message

    def add(self, message: Captured) -> None:
        super().add(message)
        self._on_message()


def _copies(file: Path) -> list[Copy]:
    if not file.exists():
        return []
    return [
        Copy(line.message_id, line.recipients, line.sha256, line.anomalies)
        for line in read_capture_file(file)
    ]


class Deployment:
    """One test's processes over one database; whatever it started ends with it."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder, self.database = folder, database
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self._stack.close()

    def sink(self, mode: str = "accept", port: int = 0) -> SinkProcess:
        """Spawn a sinkhole; call its `ready` before its port is used."""
        sink = SinkProcess(self.folder, port, mode)
        self._stack.callback(sink.kill9)
        sink.spawn()
        return sink

    def told_sink(self, mode: str = "accept", **told: Any) -> SinkThread:
        """Start a sinkhole that tells."""
        sink = SinkThread(self.folder, mode, **told)
        self._stack.callback(sink.stop)
        sink.start()
        return sink

    def service(self, sink_port: int, *arguments: str, name: str = "service", **environ: str) -> Service:
        """Return a service that is not started yet."""
        sink = f"127.0.0.1:{sink_port}"
        base = {
            "MAIL_POSTGRES_DSN": self.database.dsn,
            "MAIL_POSTGRES_POOL_SIZE": "4",
            "MAIL_INTERNAL_HTTP_ADDR": "127.0.0.1:0",
            "MAIL_SMTP_MODE": "smtp",
            "MAIL_SMTP_ADDR": sink,
            "MAIL_SINKHOLE_ADDR": sink,
            "MAIL_SMTP_FROM_EMAIL": SENDER,
            "MAIL_SHUTDOWN_TIMEOUT": "10s",
            "MAIL_LOG_FORMAT": "json",
        }
        service = Service(self.folder, name, ["serve", *arguments], base | environ)
        self._stack.callback(service.end)
        return service


# -- the producer --------------------------------------------------------------------------------------------------


def mails(count: int, *, scripts: Sequence[str] = (), domain: str = "sinkhole.test") -> list[Submission]:
    """Return `count` mails: login codes, rendered ones, some to four recipients, and templates, in turn.

    `scripts` are put before recipients in turn (`defer-1x` makes the sinkhole defer the first attempt), except in login
    codes.
    """
    return [
        mail(number, script=scripts[number % len(scripts)] if scripts else "", domain=domain)
        for number in range(count)
    ]


class Load:
    """Submissions under way over several connections; each of them once, whatever comes of it."""

    def __init__(
        self, ports: Sequence[int | None], submissions: Sequence[Submission], connections: int = 8
    ) -> None:
        self.submissions = submissions
        self._waiting: queue.SimpleQueue[Submission] = queue.SimpleQueue()
        for submission in submissions:
            self._waiting.put(submission)
        self._threads = [
            threading.Thread(target=self._send, args=(ports[number % len(ports)],), daemon=True)
            for number in range(connections)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def taken_count(self) -> int:
        """How many were answered with an id so far."""
        return sum(bool(submission.ids) for submission in self.submissions)

    def wait(self) -> None:
        """Wait until each was answered or cut."""
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "the load did not end"

    def _send(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)
        with suppress(queue.Empty):
            while True:
                submission = self._waiting.get_nowait()
                submission.answers.append(post(connection, submission))
        connection.close()


def submit(service: Service, submissions: Sequence[Submission], connections: int = 8) -> None:
    """Submit each once and wait for what comes of it."""
    Load([service.port], submissions, connections).wait()


def submit_all(service: Service, submissions: Sequence[Submission], connections: int = 8) -> None:
    """Submit, again and again under the same keys, what has no 2xx answer yet, until everything has one."""

    def is_done() -> bool:
        open_ones = [submission for submission in submissions if not submission.ids]
        if open_ones:
            submit(service, open_ones, connections)
        return not open_ones

    until(is_done, "everything is taken")


def unanswered(submissions: Sequence[Submission]) -> Iterator[Submission]:
    """Yield what has no 2xx answer."""
    return (submission for submission in submissions if not submission.ids)
