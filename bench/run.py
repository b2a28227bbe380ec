"""One run: warm the peer up, time single messages while it is quiet, then give it all it can take.

Every figure is taken outside the peer: times by the load client and the sink on the machine's one monotonic clock, CPU
and memory from the operating system.
"""

import itertools
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TypedDict

import msgspec
import psutil

from bench.database import DatabaseWatch
from bench.errors import BenchError
from bench.load import Handover, Load, LoadOrder
from bench.peer import SERVICE, Intake, Peer
from bench.sink import Arrivals, Sink
from bench.usage import cpu_s, memory_bytes

SAMPLE_S: Final = 1.0  # between looks at memory and sink; more often would cost what is being measured
STALL_S: Final = 60.0  # without an arrival: what is missing then is lost
SETTLE_S: Final = 1.0  # what follows the last arrival (records, removals) is part of its cost
MAX_WAITS: Final = 4  # kinds of waits in a report, the most frequent
LOAD_TIMEOUT_S: Final = 3600.0  # 20,000 messages at 6 a second


class Plan(msgspec.Struct, frozen=True):
    """What each run sends. The tokens of the phases do not overlap, from `first` on.

    `sample_s` lies between looks at memory and sink.
    """

    messages: int
    quiet_messages: int
    connections: int = 20
    quiet_pause_s: float = 0.1
    warm_messages: int = 500
    first: int = 0
    sample_s: float = SAMPLE_S

    @property
    def warm(self) -> range:
        """Tokens that are not timed."""
        return range(self.first, self.first + self.warm_messages)

    @property
    def quiet(self) -> range:
        """Tokens sent one by one."""
        return range(self.warm.stop, self.warm.stop + self.quiet_messages)

    @property
    def bulk(self) -> range:
        """Tokens sent as fast as they are accepted."""
        return range(self.quiet.stop, self.quiet.stop + self.messages)


class Figures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one run showed; None is what it can't show. `waits`: how many sessions of PostgreSQL waited, by for what."""

    accepted_per_s: float | None = None
    delivered_per_s: float | None = None
    cpu_s_per_1000: float | None = None
    service_cpu_s_per_1000: float | None = None
    postgres_cpu_s_per_1000: float | None = None
    redis_cpu_s_per_1000: float | None = None
    accepted_per_service_cpu_s: float | None = None
    peak_memory_mb: float | None = None
    service_memory_before_mb: float | None = None
    service_memory_peak_mb: float | None = None
    service_memory_after_mb: float | None = None
    request_to_hop_p50_ms: float | None = None
    request_to_hop_p99_ms: float | None = None
    accept_to_hop_p50_ms: float | None = None
    accept_to_hop_p99_ms: float | None = None
    flood_accepted_per_s: float | None = None
    flood_delivered_per_s: float | None = None
    wal_bytes_per_message: float | None = None
    wal_to_payload: float | None = None
    waiting_sessions: float | None = None
    queue_s: float | None = None
    queue_shape_s: float | None = None
    retention_s: float | None = None
    empty_delivered_per_s: float | None = None
    to_empty: float | None = None
    longest_gap_ms: float | None = None
    share_of_arithmetic: float | None = None
    loop_stall_ms: float | None = None
    machine_stall_ms: float | None = None
    lost: int
    duplicated: int
    message_bytes: float | None = None
    load_cpu_ms: float | None = None
    sink_cpu_ms: float | None = None
    collector_cpu_ms: float | None = None
    elsewhere_cores: float
    waits: dict[str, float] = {}


class Waits(TypedDict, total=False):
    """The figures that single messages give."""

    request_to_hop_p50_ms: float
    request_to_hop_p99_ms: float
    accept_to_hop_p50_ms: float
    accept_to_hop_p99_ms: float


class Cost(msgspec.Struct, frozen=True):
    """What a phase took of the machine; `elsewhere_s` is CPU that was neither the peer's nor the bench's.

    `memory_bytes` are samples of the whole peer, `service_bytes` of the service alone, the first before the phase.
    `measuring_s` is the CPU of load client, sink and collector; `wal_bytes` and `waits` are of a peer's PostgreSQL.
    """

    cpu_s: dict[str, float]
    measuring_s: dict[str, float]
    elsewhere_s: float
    wall_s: float
    memory_bytes: list[int]
    service_bytes: list[int]
    wal_bytes: int | None
    waits: dict[str, float]


class _Reading(msgspec.Struct, frozen=True):
    """The time, the CPU seconds the machine spent on anything but peer and bench, and those of each part so far."""

    at_s: float
    elsewhere_s: float
    cpu_s: dict[str, float]


class Meter:
    """Measures the cost of a phase of `peer` from its construction on; `measuring` are processes of the bench's own."""

    def __init__(self, peer: Peer, measuring: dict[str, int]) -> None:
        self._peer, self._measuring = peer, measuring | peer.measuring
        self._database = DatabaseWatch(peer.ways[Intake.SQL]) if Intake.SQL in peer.ways else None
        self._memory: list[int] = []
        self._service: list[int] = []
        self._begin = self._read()
        self.sample()

    def sample(self) -> None:
        """Look at the memory."""
        self._memory.append(memory_bytes(self._peer.roots.values()))
        self._service.append(memory_bytes([self._peer.roots[SERVICE]]))

    def cost(self) -> Cost:
        """Return what the phase took until now."""
        self.sample()
        begin, end = self._begin, self._read()
        spent_s = {part: end.cpu_s[part] - begin.cpu_s[part] for part in end.cpu_s}
        return Cost(
            cpu_s={part: spent_s[part] for part in self._peer.roots},
            measuring_s={part: spent_s[part] for part in self._measuring},
            elsewhere_s=end.elsewhere_s - begin.elsewhere_s,
            wall_s=end.at_s - begin.at_s,
            memory_bytes=self._memory,
            service_bytes=self._service,
            wal_bytes=self._database.wal_bytes() if self._database else None,
            waits=self._database.waits() if self._database else {},
        )

    def end(self) -> None:
        """Look at nothing any more."""
        if self._database:
            self._database.stop()

    def _read(self) -> _Reading:
        times = psutil.cpu_times()
        busy_s = sum(times) - times.idle - getattr(times, "iowait", 0.0)
        own_s = cpu_s({os.getpid(), *self._peer.roots.values()})
        parts = {part: cpu_s([pid]) for part, pid in (self._peer.roots | self._measuring).items()}
        return _Reading(time.monotonic(), busy_s - own_s, parts)


class Observed(Protocol):
    """What was seen while a peer ran, waiting to be put together with what the sink got in all."""

    def figures(self, arrivals: Arrivals) -> dict[str, Figures]:
        """Return figures by column. Raises `BenchError` if they would not be honest."""


class Observation(msgspec.Struct, frozen=True):
    """What was seen of one peer. `parked` is how many messages it keeps, if it sends nothing."""

    name: str
    intake: Intake
    plan: Plan
    quiet: Handover | None
    bulk: Handover
    cost: Cost
    parked: int | None

    def figures(self, arrivals: Arrivals) -> dict[str, Figures]:
        """Return the one column that a peer has."""
        total = self.plan.warm_messages + self.plan.messages + (self.plan.quiet_messages if self.quiet else 0)
        arrived = len(arrivals.at_ns) if self.parked is None else self.parked
        if arrived < total / 2:
            raise BenchError(f"{total - arrived} of {total} accepted messages never came; that is no speed")
        cost, first_ns = self.cost, min(self.bulk.started_ns.values())
        arrived_ns = [at_ns for token, at_ns in arrivals.at_ns.items() if token in self.plan.bulk]
        per_1000 = {part: spent_s / self.plan.messages * 1000 for part, spent_s in cost.cpu_s.items()}
        by_part = per_1000 if len(per_1000) > 1 else {}
        message_bytes = arrivals.content_bytes / (arrived + arrivals.duplicates) if arrived_ns else None
        wal_bytes = None if cost.wal_bytes is None else cost.wal_bytes / self.plan.messages
        figures = Figures(
            **waits(self.quiet, arrivals, acceptance=self.intake is not Intake.STREAM) if self.quiet else {},
            accepted_per_s=self.plan.messages / (max(self.bulk.accepted_ns.values()) - first_ns) * 1e9,
            delivered_per_s=len(arrived_ns) / (max(arrived_ns) - first_ns) * 1e9 if arrived_ns else None,
            cpu_s_per_1000=sum(per_1000.values()),
            service_cpu_s_per_1000=by_part.get(SERVICE),
            postgres_cpu_s_per_1000=by_part.get("PostgreSQL"),
            redis_cpu_s_per_1000=by_part.get("Redis"),
            accepted_per_service_cpu_s=1000 / by_part[SERVICE] if by_part else None,
            peak_memory_mb=max(cost.memory_bytes) / 1e6,
            service_memory_before_mb=cost.service_bytes[0] / 1e6,
            service_memory_peak_mb=max(cost.service_bytes) / 1e6,
            service_memory_after_mb=cost.service_bytes[-1] / 1e6,
            wal_bytes_per_message=wal_bytes,
            wal_to_payload=wal_bytes / message_bytes if wal_bytes and message_bytes else None,
            waiting_sessions=sum(cost.waits.values()) if wal_bytes else None,
            lost=total - arrived,
            duplicated=arrivals.duplicates,
            message_bytes=message_bytes,
            **measuring(cost, self.plan.messages),
            elsewhere_cores=cost.elsewhere_s / cost.wall_s,
            waits=dict(itertools.islice(cost.waits.items(), MAX_WAITS)),
        )
        return {self.name: figures}


def observe(peer: Peer, sink: Sink, plan: Plan) -> Observation:
    """Carry `plan` out on a running peer. What arrived stays in the sink, to be taken when the peer has stopped."""
    send(peer, sink, _order(peer, plan, plan.warm))
    wants_quiet = peer.count_parked is None and plan.quiet_messages
    quiet = send(peer, sink, _order(peer, plan, plan.quiet, plan.quiet_pause_s))[0] if wants_quiet else None
    bulk, cost = send(peer, sink, _order(peer, plan, plan.bulk), plan.sample_s)
    parked = peer.count_parked() if peer.count_parked else None
    return Observation(peer.name, peer.intake, plan, quiet, bulk, cost, parked)


def _order(peer: Peer, plan: Plan, tokens: range, pause_s: float = 0.0) -> LoadOrder:
    return LoadOrder(peer.intake, peer.ways[peer.intake], tokens, plan.connections, pause_s)


def send(
    peer: Peer, sink: Sink, order: LoadOrder, sample_s: float = SAMPLE_S, until: int | None = None
) -> tuple[Handover, Cost]:
    """Carry `order` out and wait until all of it, or `until` messages, has arrived or no more comes."""
    with sending(peer, sink, order) as (load, meter):
        begin_s = time.monotonic()
        while not load.done(sample_s):
            meter.sample()
            if time.monotonic() - begin_s > LOAD_TIMEOUT_S:
                raise BenchError(
                    f"{peer.name} did not accept {len(order.tokens)} messages in {LOAD_TIMEOUT_S:.0f} s"
                )
        handover = load.result()
        if peer.count_parked is None:
            await_arrivals(sink, order.tokens, len(order.tokens) if until is None else until, meter)
        time.sleep(SETTLE_S)
        return handover, meter.cost()


@contextmanager
def sending(peer: Peer, sink: Sink, order: LoadOrder) -> Iterator[tuple[Load, Meter]]:
    """Start to carry `order` out, and to measure it."""
    with Load(order) as load:
        meter = Meter(peer, {"load": load.pid, "sink": sink.pid})
        try:
            load.start()
            yield load, meter
        finally:
            meter.end()


def await_arrivals(sink: Sink, tokens: range, wanted: int, meter: Meter) -> None:
    """Wait until `wanted` of `tokens` have arrived, or no more comes."""
    arrived, stalled_at_s = sink.count(tokens), time.monotonic() + STALL_S
    while arrived < wanted and time.monotonic() < stalled_at_s:
        time.sleep(SAMPLE_S)
        meter.sample()
        before, arrived = arrived, sink.count(tokens)
        if arrived > before:
            stalled_at_s = time.monotonic() + STALL_S


class Measuring(TypedDict, total=False):
    """What measuring cost: CPU of each of the bench's processes."""

    load_cpu_ms: float
    sink_cpu_ms: float
    collector_cpu_ms: float


def measuring(cost: Cost, messages: int) -> Measuring:
    """Return what measuring cost for each of `messages`."""
    spent_ms = {part: spent_s / messages * 1000 for part, spent_s in cost.measuring_s.items()}
    found = Measuring(load_cpu_ms=spent_ms["load"], sink_cpu_ms=spent_ms["sink"])
    return found if "collector" not in spent_ms else found | {"collector_cpu_ms": spent_ms["collector"]}


def waits(handover: Handover, arrivals: Arrivals, *, acceptance: bool) -> Waits:
    """Return how long single messages took to the hop; without `acceptance` from the request only."""
    from_request_ms = _waits_ms(handover.started_ns, arrivals)
    times = Waits(request_to_hop_p50_ms=from_request_ms[49], request_to_hop_p99_ms=from_request_ms[98])
    if acceptance:
        from_accept_ms = _waits_ms(handover.accepted_ns, arrivals)
        times |= {"accept_to_hop_p50_ms": from_accept_ms[49], "accept_to_hop_p99_ms": from_accept_ms[98]}
    return times


def _waits_ms(since_ns: dict[int, int], arrivals: Arrivals) -> list[float]:
    """Return the 99 percentiles of the time to arrival, in ms; below zero if the peer delivered before it answered."""
    waits_ms = [
        (arrivals.at_ns[token] - since) / 1e6 for token, since in since_ns.items() if token in arrivals.at_ns
    ]
    return statistics.quantiles(waits_ms, n=100, method="inclusive")
