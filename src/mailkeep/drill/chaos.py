"""The chaos drill: mail comes in steadily while replicas, PostgreSQL, Redis and the next hop are struck by a seeded schedule.

Replicas are killed, stopped and frozen past their TTL; PostgreSQL is killed; Redis is restarted; the sinkhole stalls, drops,
refuses for now, or takes a mail and loses its reply. Then every fault ends, the queue drains, and the ledger is judged:
nothing lost, each second copy explained by an attempt of unknown outcome, none under `at_most_once`, nothing stuck.
"""

import asyncio
import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from enum import Enum, auto
from functools import partial
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM
from typing import Any, Final, TypeVar

import asyncpg
import msgspec

from mailkeep.drill.judgement import ENDS, QUESTIONS, Figures, Life, Span, figures, judged
from mailkeep.drill.ledger import Broken, Copy, Ledger
from mailkeep.drill.local import SENDER, LocalDeployment
from mailkeep.drill.replica_api import ReplicaError
from mailkeep.drill.report import Report, Tell
from mailkeep.drill.steady_load import SteadyLoad
from mailkeep.drill.steps import SECOND_LOOK_S, DrillError, Steps
from mailkeep.drill.strikes import Strike, StrikeKind, schedule
from mailkeep.drill.witness import read_ledger, watch
from mailkeep.intake.stream import STREAM
from mailkeep.version import __version__

NAME: Final = "chaos"
STEPS: Final = ("replicas answer", "struck under load", "drained", "no replica gave up", *QUESTIONS)
CALM_MODE: Final = "slow@dot"
"""Between faults of the sinkhole: a second at each final dot, so that whoever is struck has mail in its hands."""
RUNGS: Final = 40
"""Short waits, more of them than any run of faults uses up: a dead letter has another cause."""
HEARTBEATS_A_TTL: Final = 5
"""As the defaults have it: 2 s to 10 s."""
LOOK_S: Final = 0.05
"""Between two rounds of looking after replicas and schedule: a strike is late by no more than that, a fortieth of the shortest TTL in use."""
PROBE_S: Final = 0.2
"""Between two questions of the same thing (does a replica listen, has the mail ended), each of which costs a connection."""
RESPAWN_S: Final = 1.0
"""Before a replica that ended by itself is started again: PostgreSQL or Redis is away."""
FLUSH_EVERY_S: Final = 3.0
QUERY_S: Final = 10.0
MAX_SHOWN: Final = 5
"""Broken rules in one line of the report."""

T = TypeVar("T")

_LIVE: Final = (
    "SELECT (SELECT count(*) FROM mail.deliveries WHERE status IN ('queued', 'rendered', 'sending'))"
    " + (SELECT count(*) FROM mail.bounces_owed)"
)
_MISSING: Final = (
    "SELECT count(*) FROM unnest($1::uuid[]) AS t(id)"
    " WHERE NOT EXISTS (SELECT FROM mail.deliveries d WHERE d.id = t.id)"
)
_LIVES: Final = """
SELECT r.pid, extract(epoch FROM r.started_at)::float8 AS started_at,
       extract(epoch FROM max(a.finished_at))::float8 AS taken_over_at, count(a.finished_at) AS taken_over_count
FROM mail.replicas r LEFT JOIN mail.attempts a ON a.replica_id = r.id AND a.status = 'abandoned'
GROUP BY r.id
"""


class Plan(msgspec.Struct, frozen=True):
    """What to do. Equal plans have equal schedules."""

    seed: int
    duration_s: float
    replica_count: int = 3
    kills_per_minute: float = 12.0
    mails_per_s: float = 10.0
    ttl_s: float = 10.0
    patience_s: float = 180.0
    kinds: tuple[StrikeKind, ...] = tuple(StrikeKind)


class Progress(msgspec.Struct, frozen=True):
    """Where a run stands, for who watches it."""

    ran_s: float
    accepted: int
    struck: dict[str, int]
    mode: str


class Run(msgspec.Struct, frozen=True):
    """What came of it: the report, and the ledger in figures where it came to one."""

    report: Report
    plan: Plan
    struck: dict[str, int]
    is_interrupted: bool
    figures: Figures | None
    conditions: dict[str, str]


class _State(Enum):
    STARTING = auto()
    UP = auto()
    FROZEN = auto()
    STOPPING = auto()
    GONE = auto()  # ended by itself: PostgreSQL or Redis was away as it started


class _Place(msgspec.Struct):
    """One replica's place: what its process is in, and since or until when (monotonic)."""

    index: int
    state: _State = _State.STARTING
    until_s: float = 0.0


def settings(plan: Plan) -> dict[str, str]:
    """Return the replicas' settings: short waits, and timeouts that end what the sinkhole stalls."""
    ladder = ", ".join(["500ms", "1s", *["2s"] * (RUNGS - 2)])
    classes = ("AUTH", "TRANSACTIONAL", "RELAY")
    return {f"MAIL_RETRY_LADDER_{name}": ladder for name in classes} | {
        "MAIL_REPLICA_TTL": f"{plan.ttl_s * 1000:.0f}ms",
        "MAIL_REPLICA_HEARTBEAT": f"{plan.ttl_s * 1000 / HEARTBEATS_A_TTL:.0f}ms",
        "MAIL_SMTP_TIMEOUT": "5s",
        "MAIL_SMTP_DATA_TIMEOUT": "5s",
        "MAIL_SHUTDOWN_TIMEOUT": "10s",
    }


class Chaos:
    """One run over a deployment of its own. The first interruption ends the faults early, the second one the run.

    `strikes` go before the schedule that the plan's seed draws.
    """

    def __init__(
        self,
        deployment: LocalDeployment,
        plan: Plan,
        tell: Tell,
        watcher: Callable[[Progress], None] = lambda _progress: None,
        *,
        strikes: Sequence[Strike] | None = None,
    ) -> None:
        self._strikes = deque(
            strikes
            or schedule(
                plan.seed,
                plan.duration_s,
                kills_per_minute=plan.kills_per_minute,
                ttl_s=plan.ttl_s,
                kinds=plan.kinds,
            )
        )
        self._deployment, self._plan, self._watcher = deployment, plan, watcher
        self._places = [_Place(index) for index in range(plan.replica_count)]
        self._load = SteadyLoad(deployment.ports, deployment.redis_socket, plan.mails_per_s)
        self._mode, self._mode_until_s = CALM_MODE, float("inf")
        self._struck: Counter[str] = Counter()
        self._losses: list[tuple[int, float]] = []
        self._stops: list[tuple[int, float]] = []
        self._outages: list[Span] = []
        self._gave_up: list[int] = []
        self._restarts = ThreadPoolExecutor(1)
        self._restarting: Future[None] | None = None
        self._is_interrupted = False
        self._steps = Steps(tell)
        self._began_s = 0.0

    def run(self) -> Run:
        """Run it all and return what came of it."""
        found: Figures | None = None
        try:
            if self._steps.take(STEPS[0], self._begin) and self._steps.take(STEPS[1], self._strike_all):
                self._steps.take(STEPS[2], self._drain)
                self._steps.take(STEPS[3], self._see_whether_all_stayed)
                found = self._judge()
        finally:
            self._load.abandon()
            self._restarts.shutdown()
        self._steps.skip(STEPS[len(self._steps.taken) :])
        return Run(
            Report(NAME, self._steps.taken),
            self._plan,
            dict(self._struck),
            self._is_interrupted,
            found,
            self._conditions(),
        )

    # -- the run -----------------------------------------------------------------------------------------------

    def _begin(self) -> str:
        self._await_all()
        _ask(self._deployment.dsn, watch)
        self._set_mode(CALM_MODE, float("inf"))
        return f"{len(self._places)} replicas; seed {self._plan.seed}"

    def _await_all(self) -> None:
        ends_at = time.monotonic() + self._plan.patience_s
        while any(place.state is not _State.UP for place in self._places):
            if time.monotonic() > ends_at:
                raise DrillError(f"waited {self._plan.patience_s:g} s in vain until all replicas answer")
            self._keep()
            time.sleep(LOOK_S)

    def _strike_all(self) -> str:
        """Strike by the schedule; a replica that is to be struck is one that is up, else the strike waits for one."""
        self._load.start()
        self._began_s = time.monotonic()
        with self._interruption_noted():
            while not self._is_interrupted and (ran_s := self._ran_s()) < self._plan.duration_s:
                self._keep()
                while self._strikes and self._strikes[0].at_s <= ran_s and self._strike(self._strikes[0]):
                    self._strikes.popleft()
                self._watcher(Progress(ran_s, self._load.accepted_count, dict(self._struck), self._mode))
                time.sleep(LOOK_S)
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self._struck.items()))

    def _ran_s(self) -> float:
        return time.monotonic() - self._began_s

    @contextmanager
    def _interruption_noted(self) -> Iterator[None]:
        """Note the first Ctrl-C: raised where it strikes, it would lose a process that is just being started."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(SIGINT)

        def note(*_signal: object) -> None:
            self._is_interrupted = True
            signal.signal(SIGINT, before)

        signal.signal(SIGINT, note)
        try:
            yield
        finally:
            signal.signal(SIGINT, before)

    def _keep(self) -> None:
        """Do what is due by itself: start what has ended, thaw what was frozen, let the sinkhole accept again."""
        now_s = time.monotonic()
        for place in self._places:
            self._keep_place(place, now_s)
        if now_s >= self._mode_until_s:
            self._set_mode(CALM_MODE, float("inf"))

    def _keep_place(self, place: _Place, now_s: float) -> None:
        process = self._deployment.processes[place.index]
        if process.has_ended:
            self._keep_ended(place, now_s)
        elif place.state is _State.STARTING and now_s >= place.until_s:
            place.until_s = now_s + PROBE_S
            if _listens(self._deployment.ports[place.index]):
                place.state = _State.UP
        elif place.state is _State.FROZEN and now_s >= place.until_s:
            process.send(SIGCONT)
            place.state = _State.STARTING

    def _keep_ended(self, place: _Place, now_s: float) -> None:
        if place.state is _State.STOPPING or (place.state is _State.GONE and now_s >= place.until_s):
            self._deployment.replace(place.index)
            place.state, place.until_s = _State.STARTING, now_s
        elif place.state is not _State.GONE:
            if place.state is _State.UP:
                self._gave_up.append(place.index)
            place.state, place.until_s = _State.GONE, now_s + RESPAWN_S

    def _strike(self, strike: Strike) -> bool:
        """Strike, unless there is no replica up for it."""
        match strike.kind:
            case StrikeKind.SINK:
                self._set_mode(strike.mode, time.monotonic() + strike.lasts_s)
            case StrikeKind.POSTGRES:
                # By a thread: others are struck meanwhile.
                if self._restarting is not None and not self._restarting.done():
                    return True
                self._restarting = self._restarts.submit(self._restart_postgres)
            case StrikeKind.REDIS:
                if self._deployment.redis_socket is None:
                    return True
                self._deployment.restart_redis()
            case _:
                up = [place for place in self._places if place.state is _State.UP]
                if not up:
                    return False
                self._strike_replica(strike, up[int(strike.lot * len(up))])
        self._struck[strike.kind] += 1
        return True

    def _restart_postgres(self) -> None:
        began_at = time.time()
        self._deployment.restart_postgres()
        # For a TTL after it is back nobody is declared lost.
        self._outages.append(Span(began_at, time.time() + self._plan.ttl_s))

    def _strike_replica(self, strike: Strike, place: _Place) -> None:
        process = self._deployment.processes[place.index]
        struck = (process.pid, time.time())
        match strike.kind:
            case StrikeKind.KILL:
                self._losses.append(struck)
                process.end(SIGKILL)
                self._deployment.replace(place.index)
                place.state = _State.STARTING
            case StrikeKind.STOP:
                self._stops.append(struck)
                place.state = _State.STOPPING
                process.send(SIGTERM)
            case _:
                process.send(SIGSTOP)
                place.state, place.until_s = _State.FROZEN, time.monotonic() + strike.lasts_s

    def _set_mode(self, mode: str, until_s: float) -> None:
        self._deployment.set_mode(mode)
        self._mode, self._mode_until_s = mode, until_s

    # -- the end -----------------------------------------------------------------------------------------------

    def _drain(self) -> str:
        """End every fault and wait until what was accepted has ended."""
        began_s = time.monotonic()
        self._set_mode("accept", float("inf"))
        if self._restarting is not None:
            self._restarting.result()
        for place in self._places:
            if place.state is _State.FROZEN:
                place.until_s = 0.0
        self._await_all()
        if not self._load.finish(self._plan.patience_s):
            raise DrillError("some mail was not taken although no fault is left")
        if self._load.refused:
            raise DrillError(f"{len(self._load.refused)} mails were refused for good")
        self._await_empty()
        time.sleep(SECOND_LOOK_S)
        return f"{self._load.accepted_count} mails ended, {time.monotonic() - began_s:.0f} s after the last fault"

    def _see_whether_all_stayed(self) -> str:
        if self._gave_up:
            raise DrillError(
                f"{len(self._gave_up)} times a replica that was up ended by itself: {self._gave_up}"
            )
        return "none ended by itself after its start"

    def _await_empty(self) -> None:
        """Wait until nothing is live, and what the stream took is stored: what an answer named must be already."""
        streamed = [one.body["delivery_id"] for one in self._load.submissions if one.path == STREAM]
        ends_at = time.monotonic() + self._plan.patience_s
        flush_at = 0.0
        while left := _ask(self._deployment.dsn, lambda connection: _left(connection, streamed)):
            if time.monotonic() > ends_at:
                raise DrillError(f"waited {self._plan.patience_s:g} s in vain: {left} mails have not ended")
            self._keep()
            if time.monotonic() >= flush_at:
                flush_at = time.monotonic() + FLUSH_EVERY_S
                with suppress(ReplicaError):
                    self._deployment.replicas[0].post("/queue/flush", {"all": True})
            time.sleep(PROBE_S)

    def _judge(self) -> Figures:
        ledger, lives = self._read()
        broken = judged(ledger)
        for question, rules in QUESTIONS.items():
            self._steps.take(question, partial(_answer, broken, rules))
        return figures(ledger, broken, lives, losses=self._losses, stops=self._stops, outages=self._outages)

    def _read(self) -> tuple[Ledger, list[Life]]:
        copies = [
            Copy(line.message_id, line.recipients, line.sha256, line.anomalies)
            for line in self._deployment.captured()
        ]

        async def read(connection: asyncpg.Connection) -> tuple[Ledger, list[Life]]:
            ledger = await read_ledger(
                connection, self._load.submissions, copies, sender=SENDER, ends=ENDS, rungs=RUNGS
            )
            return ledger, [Life(**dict(row)) for row in await connection.fetch(_LIVES)]

        return _ask(self._deployment.dsn, read)

    def _conditions(self) -> dict[str, str]:
        async def read(connection: asyncpg.Connection) -> dict[str, str]:
            names = ("fsync", "synchronous_commit", "full_page_writes", "server_version")
            return {name: await connection.fetchval(f"SHOW {name}") for name in names}

        with suppress(OSError, asyncpg.PostgresError):
            return {"mailkeep": __version__, "cores": str(os.cpu_count())} | _ask(self._deployment.dsn, read)
        return {}


def _answer(broken: Sequence[Broken], rules: frozenset[str]) -> str:
    found = [str(one) for one in broken if one.rule in rules]
    if found:
        raise DrillError(f"{len(found)} broken: " + "; ".join(found[:MAX_SHOWN]))
    return "0 broken"


async def _left(connection: asyncpg.Connection, streamed: list[str]) -> int:
    live = await connection.fetchval(_LIVE)
    return int(live) + int(await connection.fetchval(_MISSING, streamed))


def _ask(dsn: str, question: Callable[[asyncpg.Connection], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        connection = await asyncpg.connect(dsn, timeout=QUERY_S)
        try:
            return await question(connection)
        finally:
            await connection.close()

    return asyncio.run(run())


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PROBE_S):
        return True
    return False
