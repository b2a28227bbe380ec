"""A full queue and a long history: what they do to the rate, to memory, to `mailkeep queue`; and what retention costs.

One service is measured empty, then with deferred deliveries waiting (retry times spread over hours), then with ended ones
beside them, and at last while retention removes the oldest days; each time between two halves of the same load on another one,
which stays empty, because what the machine is worth changes within minutes. Rows are copies, made by SQL, of one mail that the
service itself sent: all its tables, with new ids, instants and addresses, so that they are what it would have written. A phase
begins when PostgreSQL has written them out, what became due meanwhile has been sent, and a few thousand mails more; what
becomes due during it is sent beside its mail, and counts.
"""

import asyncio
import contextlib
import functools
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

import asyncpg
import msgspec

from bench.errors import BenchError
from bench.load import Handover, Load, LoadOrder
from bench.mail import DOMAIN
from bench.peer import Intake, Peer
from bench.run import Cost, Figures, Observation, Plan, await_arrivals, send, sending
from bench.sink import Arrivals, Sink
from mailkeep.store.postgres import Store
from mailkeep.store.retention import Retention

RETENTION_S: Final = 30 * 86_400.0  # MAIL_DELIVERY_RETENTION, by default
KEYS_S: Final = 7 * 86_400.0  # MAIL_IDEMPOTENCY_TTL and MAIL_PAYLOAD_RETENTION, by default
MAX_SWEEPS: Final = 10  # a day whose lock can't be had at once is left for the next one
SPREAD: Final = "12 hours"  # over which the deferred are due
SETTINGS: Final = {"MAIL_CLEANUP_INTERVAL": "1d"}  # the bench says when
COMMANDS: Final = {"queue_s": ("queue",), "queue_shape_s": ("queue", "shape")}
WAITING_BEGIN: Final = 20_000_000  # tokens of the deferred: some become due, and come
LOOKS: Final = 3  # at each command; the middle one counts
COMMAND_TIMEOUT_S: Final = 120.0
DUE_TIMEOUT_S: Final = 300.0
DUE_AT_MOST: Final = 20  # of a million over twelve hours, one is due every 43 ms
LOOK_S: Final = 0.5


class BacklogPlan(msgspec.Struct, frozen=True):
    """What is sent in each phase, and how many rows there are besides; `expired` are of the `ended`.

    A phase warms up with thousands: after a checkpoint the first change of each page of an index is logged whole.
    """

    sent: Plan
    waiting: int
    ended: int
    expired: int


class Half(msgspec.Struct, frozen=True):
    """What the empty service was sent before or after a phase."""

    tokens: range
    started_ns: int

    def took_ns(self, arrivals: Arrivals) -> int:
        """Return how long it took to deliver all. Raises `BenchError` if it did not."""
        if missing := [token for token in self.tokens if token not in arrivals.at_ns]:
            raise BenchError(f"{len(missing)} messages of the empty service never came")
        return max(arrivals.at_ns[token] for token in self.tokens) - self.started_ns


class Phase(msgspec.Struct, frozen=True):
    """What one phase showed; the `halves` are those of the empty service."""

    name: str
    plan: Plan
    bulk: Handover
    cost: Cost
    looks_s: dict[str, float]
    retention_s: float | None = None
    halves: tuple[Half, ...] = ()


class BacklogObservation(msgspec.Struct, frozen=True):
    """What was seen in all phases."""

    peer: str
    phases: list[Phase]

    def figures(self, arrivals: Arrivals, of_empty: Arrivals) -> dict[str, Figures]:
        """Return a column for each phase. Raises `BenchError` if they would not be honest."""
        return {phase.name: self._figures(phase, arrivals, of_empty) for phase in self.phases}

    def _figures(self, phase: Phase, arrivals: Arrivals, of_empty: Arrivals) -> Figures:
        tokens = range(phase.plan.first, phase.plan.bulk.stop)
        at_ns = {token: arrivals.at_ns[token] for token in tokens if token in arrivals.at_ns}
        seen = Observation(self.peer, Intake.HTTP_RENDERED, phase.plan, None, phase.bulk, phase.cost, None)
        # The other phases are no figures of this one.
        alone = Arrivals(at_ns, 0, arrivals.content_bytes * len(at_ns) // max(len(arrivals.at_ns), 1))
        (figures,) = seen.figures(alone).values()
        begin_ns, end_ns = min(phase.bulk.started_ns.values()), max(at_ns.values())
        order = sorted(at for at in arrivals.at_ns.values() if begin_ns <= at <= end_ns)
        gaps_ns = [after - before for before, after in itertools.pairwise(order)]
        delivered_per_s = len(order) / (end_ns - begin_ns) * 1e9
        took_ns = sum(half.took_ns(of_empty) for half in phase.halves)
        empty_per_s = sum(len(half.tokens) for half in phase.halves) / took_ns * 1e9
        return msgspec.structs.replace(
            figures,
            delivered_per_s=delivered_per_s,
            empty_delivered_per_s=empty_per_s,
            to_empty=delivered_per_s / empty_per_s,
            longest_gap_ms=max(gaps_ns) / 1e6,
            retention_s=phase.retention_s,
            **phase.looks_s,
        )


def observe_backlog(
    peer: Peer, sink: Sink, empty: Peer, empty_sink: Sink, plan: BacklogPlan
) -> BacklogObservation:
    """Carry `plan` out on a running peer, beside an `empty` one."""
    dsn, phases = peer.ways[Intake.SQL], []
    between = functools.partial(_between, empty, empty_sink)
    first, second, third, fourth, fifth = _plans(plan.sent)
    phases.append(between(first, functools.partial(_phase, "empty", peer, sink, first)))
    asyncio.run(_fill(dsn, WAITING, plan.waiting))
    phases.append(
        between(second, functools.partial(_phase, f"{plan.waiting:,} deferred", peer, sink, second))
    )
    asyncio.run(_fill(dsn, ENDED, plan.ended - plan.expired))
    asyncio.run(_fill(dsn, EXPIRED, plan.expired))
    phases.append(between(third, functools.partial(_phase, f"and {plan.ended:,} ended", peer, sink, third)))
    removed = f"while {plan.expired:,} are removed"
    phases.append(between(fourth, functools.partial(_swept, removed, peer, sink, fourth, _remove_days)))
    phases.append(
        between(fifth, functools.partial(_swept, "while keys are swept", peer, sink, fifth, _sweep_keys))
    )
    return BacklogObservation(peer.name, phases)


def _plans(sent: Plan) -> list[Plan]:
    """Return the plans of all phases, whose tokens do not overlap."""
    each = sent.bulk.stop - sent.first
    return [msgspec.structs.replace(sent, first=sent.first + number * each) for number in range(5)]


def _between(empty: Peer, sink: Sink, plan: Plan, measure: Callable[[], Phase]) -> Phase:
    """Return what `measure` shows, between two halves of `plan` on the empty service."""
    half = msgspec.structs.replace(plan, messages=plan.messages // 2, warm_messages=plan.warm_messages // 2)
    before = _half(empty, sink, half)
    phase = measure()
    after = _half(empty, sink, msgspec.structs.replace(half, first=half.bulk.stop))
    return msgspec.structs.replace(phase, halves=(before, after))


def _half(empty: Peer, sink: Sink, plan: Plan) -> Half:
    send(empty, sink, _order(empty, plan, plan.warm))
    bulk, _ = send(empty, sink, _order(empty, plan, plan.bulk))
    return Half(plan.bulk, min(bulk.started_ns.values()))


def _phase(name: str, peer: Peer, sink: Sink, plan: Plan) -> Phase:
    send(peer, sink, _order(peer, plan, plan.warm))
    bulk, cost = send(peer, sink, _order(peer, plan, plan.bulk))
    return Phase(name, plan, bulk, cost, {figure: _look(peer, words) for figure, words in COMMANDS.items()})


def _order(peer: Peer, plan: Plan, tokens: range) -> LoadOrder:
    return LoadOrder(peer.intake, peer.ways[peer.intake], tokens, plan.connections)


def _swept(
    name: str,
    peer: Peer,
    sink: Sink,
    plan: Plan,
    remove: Callable[[str, Load], Coroutine[Any, Any, float | None]],
) -> Phase:
    """Sweep, as the retention worker of a further replica would, in the midst of the load."""
    send(peer, sink, _order(peer, plan, plan.warm))
    with sending(peer, sink, _order(peer, plan, plan.bulk)) as (load, meter):
        await_arrivals(sink, plan.bulk, plan.messages // 10, meter)
        retention_s = asyncio.run(remove(peer.ways[Intake.SQL], load))
        bulk = load.result()
        await_arrivals(sink, plan.bulk, plan.messages, meter)
        return Phase(name, plan, bulk, meter.cost(), {}, retention_s)


async def _remove_days(dsn: str, _load: Load) -> float:
    """Return how long it took until no day was left that was older than the retention."""
    async with _retention(dsn) as (retention, store):
        begin_s = time.perf_counter()
        for _ in range(MAX_SWEEPS):
            await retention.sweep()
            days = await store.fetch("partition_days", "deliveries")
            if len(days) <= RETENTION_S / 86_400:
                return time.perf_counter() - begin_s
    raise BenchError(f"{MAX_SWEEPS} sweeps did not remove the old days")


async def _sweep_keys(dsn: str, load: Load) -> None:
    """Sweep the keys of the days that are gone, for as long as there is load."""
    await _execute(dsn, "UPDATE mail.deployment SET keys_swept_on = '-infinity'")
    async with _retention(dsn) as (retention, _):
        sweeping = asyncio.create_task(retention.sweep())
        await asyncio.to_thread(load.done, COMMAND_TIMEOUT_S)
        if sweeping.done():
            await sweeping
        sweeping.cancel()


@contextlib.asynccontextmanager
async def _retention(dsn: str) -> AsyncIterator[tuple[Retention, Store]]:
    store = await Store.open(dsn, pool_size=2, application_name="bench retention")
    try:
        yield (
            Retention(store, delivery_s=RETENTION_S, payload_s=KEYS_S, key_s=KEYS_S, malformed_s=KEYS_S),
            store,
        )
    finally:
        await store.close()


def _look(peer: Peer, words: tuple[str, ...]) -> float:
    """Return how long a command of the operator's takes, its start included."""
    times_s = []
    for _ in range(LOOKS):
        begin_s = time.perf_counter()
        command = [sys.executable, "-m", "mailkeep", *words, "--json"]
        done = subprocess.run(
            command, env=peer.environment, capture_output=True, check=False, timeout=COMMAND_TIMEOUT_S
        )
        if done.returncode:
            raise BenchError(f"mailkeep {' '.join(words)} failed: {done.stderr.decode().strip()}")
        times_s.append(time.perf_counter() - begin_s)
    return sorted(times_s)[LOOKS // 2]


class History(msgspec.Struct, frozen=True):
    """Rows to make: by table, what differs in which column from the mail that is copied. `n` counts from 0, `at` is its instant."""

    kind: str
    newest_ago: str
    over: str
    changes: dict[str, dict[str, str]]


_ID: Final = "(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'))::uuid"
_KEY: Final = "$5::text || n"
_ALL: Final = {
    "deliveries": {"id": _ID, "accepted_at": "at", "idempotency_key": _KEY},
    "recipients": {"delivery_id": _ID, "address_hash": f"sha256(convert_to({_KEY}, 'UTF8'))"},
    "attempts": {"delivery_id": _ID, "started_at": "at", "finished_at": "at"},
    "idempotency_keys": {"delivery_id": _ID, "key": _KEY, "reserved_at": "at"},
}
_ENDED: Final = _ALL | {
    "deliveries": _ALL["deliveries"] | {"finished_at": "at"},
    "events": {"delivery_id": _ID, "id": "nextval('mail.event_ids')", "occurred_at": "at"},
}
WAITING: Final = History(
    "waiting-",
    "0 hours",
    "6 hours",
    _ALL
    | {
        "deliveries": _ALL["deliveries"]
        | {
            "status": "'rendered'",
            "finished_at": "NULL",
            "due_at": f"mail.now() + random() * interval '{SPREAD}'",
            "recipient_states": "'o'",
            "rungs_used": "1",
            "last_reason": "'421 4.3.2 Service temporarily unavailable'",
            "last_rule": "'service_unavailable'",
        },
        "payloads": {
            "delivery_id": _ID,
            "recipients": f"ARRAY['tok-' || ({WAITING_BEGIN} + n) || '@{DOMAIN}']",
        },
        "attempts": _ALL["attempts"]
        | {
            "status": "'provider_rejected'",
            "certainty": "'not_delivered'",
            "phase": "'rcpt'",
            "severity": "'transient'",
            "code": "421",
            "reply": "'4.3.2 Service temporarily unavailable'",
        },
    },
)
"""Deferred once."""
ENDED: Final = History("ended-", "1 day", "5 days", _ENDED)
"""Sent, and their payloads gone."""
EXPIRED: Final = History("expired-", "33 days", "5 days", _ENDED)
"""The same, older than the retention: each of these days can go whole."""


async def _fill(dsn: str, history: History, count: int) -> None:
    """Make `count` deliveries of `history`, its tables side by side, as they are when autovacuum and the checkpointer are done."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "SELECT mail.ensure_partitions((mail.now() - $1::text::interval - $2::text::interval)::date, mail.now()::date)",
            history.newest_ago,
            history.over,
        )
        copied = await connection.fetchval(
            "SELECT id FROM mail.deliveries WHERE status = 'sent' ORDER BY id DESC LIMIT 1"
        )
        # One clock for all tables: ids are made of it, and a delivery's rows must have the same.
        now = await connection.fetchval("SELECT mail.now()")
        arguments = (copied, count, history.newest_ago, history.over, history.kind, now)
        tables = sorted(history.changes)
        await asyncio.gather(*(_fill_table(dsn, table, history, arguments) for table in tables))
        await _require_same_ids(connection, history)
        # Not before all are made: what a transaction that still runs may not see can't be marked as seen by all.
        await asyncio.gather(*(_execute(dsn, f"VACUUM (FREEZE, ANALYZE) mail.{table}") for table in tables))
        await connection.execute("CHECKPOINT")
        await _sent_what_is_due(connection)
    finally:
        await connection.close()


async def _require_same_ids(connection: "asyncpg.Connection[asyncpg.Record]", history: History) -> None:
    """Raise `BenchError` unless the newest of `history` has its rows in all tables."""
    newest = await connection.fetchval(
        "SELECT delivery_id FROM mail.idempotency_keys WHERE key = $1", f"{history.kind}0"
    )
    for table in history.changes:
        found = f"SELECT EXISTS (SELECT FROM mail.{table} WHERE {_key_of(table)} = $1)"
        if not await connection.fetchval(found, newest):
            raise BenchError(f"copied deliveries have no {table}")


async def _fill_table(dsn: str, table: str, history: History, arguments: tuple[object, ...]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        # Triggers tell what happens now; these rows are history.
        await connection.execute("SET session_replication_role = replica")
        statement = _COPY.format(table=table, **await _columns(connection, table, history.changes[table]))
        await connection.execute(statement, *arguments)
    finally:
        await connection.close()


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _sent_what_is_due(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Wait for what became due of the backlog while it was being made. Raises `BenchError` if it stays."""
    given_up_s = time.monotonic() + DUE_TIMEOUT_S
    while await connection.fetchval(_DUE) > DUE_AT_MOST:
        if time.monotonic() > given_up_s:
            raise BenchError("what is due of the backlog is not being sent")
        await asyncio.sleep(LOOK_S)


_DUE: Final = """
    SELECT count(*) FROM mail.deliveries
    WHERE status IN ('queued', 'rendered') AND due_at < mail.now() OR status = 'sending'
"""
_COPY: Final = """
    INSERT INTO mail.{table} ({names})
    SELECT {values}
    FROM mail.{table} t, LATERAL (
        SELECT n, $6::timestamptz - $3::text::interval - (n + 1)::float8 / $2::int * $4::text::interval AS at
        FROM generate_series(0::bigint, $2::int - 1) n) c
    WHERE t.{key} = $1::uuid AND $5::text <> ''
"""


async def _columns(
    connection: "asyncpg.Connection[asyncpg.Record]", table: str, changes: dict[str, str]
) -> dict[str, str]:
    rows = await connection.fetch(
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_schema = 'mail' AND table_name = $1 AND is_generated = 'NEVER' ORDER BY ordinal_position",
        table,
    )
    names = [row["column_name"] for row in rows]
    values = [changes.get(name, f"t.{name}") for name in names]
    return {"names": ", ".join(names), "values": ", ".join(values), "key": _key_of(table)}


def _key_of(table: str) -> str:
    return "id" if table == "deliveries" else "delivery_id"
