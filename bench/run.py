"""One run: warm the peer up, time single messages while it is quiet, then give it all it can take.

Every figure is taken outside the peer: times by the load client and the sink on the machine's one monotonic clock, CPU
and memory from the operating system.
"""

import os
import statistics
import time
from typing import Final

import msgspec
import psutil

from bench.errors import BenchError
from bench.load import Handover, Load, LoadOrder
from bench.peer import Peer
from bench.sink import Arrivals, Sink
from bench.usage import cpu_s, memory_bytes

SAMPLE_S: Final = 1.0  # between looks at memory; more often would cost what is being measured
LOOK_S: Final = 0.05  # between looks at the sink while the queue drains
STALL_S: Final = 60.0  # without an arrival: what is missing then is lost
SETTLE_S: Final = 1.0  # what follows the last arrival (records, removals) is part of its cost
LOAD_TIMEOUT_S: Final = 3600.0  # 20,000 messages at 6 a second


class Plan(msgspec.Struct, frozen=True):
    """What each run sends. The tokens of the phases do not overlap."""

    messages: int
    quiet_messages: int
    connections: int = 20
    quiet_pause_s: float = 0.1
    warm_messages: int = 500

    @property
    def warm(self) -> range:
        """Tokens that are not timed."""
        return range(self.warm_messages)

    @property
    def quiet(self) -> range:
        """Tokens sent one by one."""
        return range(self.warm.stop, self.warm.stop + self.quiet_messages)

    @property
    def flood(self) -> range:
        """Tokens sent as fast as they are accepted."""
        return range(self.quiet.stop, self.quiet.stop + self.messages)


class Figures(msgspec.Struct, frozen=True):
    """What one run showed."""

    accepted_per_s: float
    delivered_per_s: float
    cpu_s_per_1000: float
    peak_memory_mb: float
    request_to_hop_p50_ms: float
    request_to_hop_p99_ms: float
    accept_to_hop_p50_ms: float
    accept_to_hop_p99_ms: float
    lost: int
    duplicated: int
    message_bytes: float
    elsewhere_cores: float


class Cost(msgspec.Struct, frozen=True):
    """What the flood took of the machine; `elsewhere_s` is CPU that was neither the peer's nor the bench's."""

    cpu_s: float
    elsewhere_s: float
    wall_s: float
    peak_memory_bytes: int


class Observation(msgspec.Struct, frozen=True):
    """What was seen of a peer while it ran."""

    quiet: Handover
    flood: Handover
    cost: Cost


def observe(peer: Peer, sink: Sink, plan: Plan) -> Observation:
    """Carry `plan` out on a running peer. What arrived stays in the sink, to be taken when the peer has stopped."""
    _send(peer, sink, plan, plan.warm)
    quiet, _ = _send(peer, sink, plan, plan.quiet, pause_s=plan.quiet_pause_s)
    flood, cost = _send(peer, sink, plan, plan.flood)
    return Observation(quiet, flood, cost)


def _send(
    peer: Peer, sink: Sink, plan: Plan, tokens: range, *, pause_s: float = 0.0
) -> tuple[Handover, Cost]:
    """Hand `tokens` over and wait until all have arrived or no more come."""
    order = LoadOrder(peer.intake, peer.port, tokens, plan.connections, pause_s)
    with Load(order) as load:
        begin_s, begin_cpu_s, begin_elsewhere_s = time.monotonic(), cpu_s(peer.roots), _elsewhere_s(peer)
        memory = [memory_bytes(peer.roots)]
        load.start()
        while not load.done(SAMPLE_S):
            memory.append(memory_bytes(peer.roots))
            if time.monotonic() - begin_s > LOAD_TIMEOUT_S:
                raise BenchError(
                    f"{peer.name} did not accept {len(tokens)} messages in {LOAD_TIMEOUT_S:.0f} s"
                )
        handover = load.result()
        memory.append(memory_bytes(peer.roots))
        _await_arrivals(sink, tokens.stop)
        time.sleep(SETTLE_S)
        cost = Cost(
            cpu_s=cpu_s(peer.roots) - begin_cpu_s,
            elsewhere_s=_elsewhere_s(peer) - begin_elsewhere_s,
            wall_s=time.monotonic() - begin_s,
            peak_memory_bytes=max(memory),
        )
    return handover, cost


def _await_arrivals(sink: Sink, total: int) -> None:
    arrived, stalled_at_s = sink.count(), time.monotonic() + STALL_S
    while arrived < total and time.monotonic() < stalled_at_s:
        time.sleep(LOOK_S)
        before, arrived = arrived, sink.count()
        if arrived > before:
            stalled_at_s = time.monotonic() + STALL_S


def _elsewhere_s(peer: Peer) -> float:
    """Return the CPU seconds the machine spent on anything but the peer and the bench; only differences mean something."""
    times = psutil.cpu_times()
    busy_s = sum(times) - times.idle - getattr(times, "iowait", 0.0)
    return busy_s - cpu_s({os.getpid(), *peer.roots})


def figures(plan: Plan, seen: Observation, arrivals: Arrivals) -> Figures:
    """Work one run's figures out, from what was seen of the peer and what the sink got in all."""
    total, arrived = plan.flood.stop, len(arrivals.at_ns)
    if arrived < total / 2:
        raise BenchError(f"{total - arrived} of {total} accepted messages never came; that is no speed")
    arrived_ns = [at_ns for token, at_ns in arrivals.at_ns.items() if token in plan.flood]
    first_ns = min(seen.flood.started_ns.values())
    from_request_ms = _waits_ms(seen.quiet.started_ns, arrivals)
    from_accept_ms = _waits_ms(seen.quiet.accepted_ns, arrivals)
    return Figures(
        accepted_per_s=plan.messages / (max(seen.flood.accepted_ns.values()) - first_ns) * 1e9,
        delivered_per_s=len(arrived_ns) / (max(arrived_ns) - first_ns) * 1e9,
        cpu_s_per_1000=seen.cost.cpu_s / plan.messages * 1000,
        peak_memory_mb=seen.cost.peak_memory_bytes / 1e6,
        request_to_hop_p50_ms=from_request_ms[49],
        request_to_hop_p99_ms=from_request_ms[98],
        accept_to_hop_p50_ms=from_accept_ms[49],
        accept_to_hop_p99_ms=from_accept_ms[98],
        lost=total - arrived,
        duplicated=arrivals.duplicates,
        message_bytes=arrivals.content_bytes / (arrived + arrivals.duplicates),
        elsewhere_cores=seen.cost.elsewhere_s / seen.cost.wall_s,
    )


def _waits_ms(since_ns: dict[int, int], arrivals: Arrivals) -> list[float]:
    """Return the 99 percentiles of the time to arrival, in ms; below zero if the peer delivered before it answered."""
    waits = [
        (arrivals.at_ns[token] - since) / 1e6 for token, since in since_ns.items() if token in arrivals.at_ns
    ]
    return statistics.quantiles(waits, n=100, method="inclusive")
