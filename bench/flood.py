"""Login codes under a flood: how long they take to the hop while the service is idle, and while a stream is poured in.

The flood is ordinary mail of class `transactional`, as much as Mailkeep takes; the codes come over HTTP one by one. What
is compared is Mailkeep with itself: Postfix knows no classes.
"""

import asyncio
import time
from typing import Final

import msgspec
from redis.asyncio import Redis

from bench.clients import acknowledged
from bench.errors import BenchError
from bench.load import Handover, Load, LoadOrder
from bench.peer import Intake, Peer
from bench.run import Cost, Figures, send, waits
from bench.sink import Arrivals, Sink

LOOK_S: Final = 0.05  # between looks whether the flood has reached the sink
BEGIN_TIMEOUT_S: Final = 60.0


class FloodPlan(msgspec.Struct, frozen=True):
    """What a run sends. The tokens of the phases do not overlap."""

    messages: int
    codes: int = 600
    pause_s: float = 0.1
    connections: int = 20
    warm_messages: int = 500

    @property
    def warm(self) -> range:
        """Login codes that are not timed."""
        return range(self.warm_messages)

    @property
    def idle(self) -> range:
        """Login codes while nothing else happens."""
        return range(self.warm.stop, self.warm.stop + self.codes)

    @property
    def flooded(self) -> range:
        """Login codes during the flood."""
        return range(self.idle.stop, self.idle.stop + self.codes)

    @property
    def flood(self) -> range:
        """Entries of the stream."""
        return range(self.flooded.stop, self.flooded.stop + self.messages)


class FloodObservation(msgspec.Struct, frozen=True):
    """What was seen; `accepted` and `delivered` of the flood while the codes were sent."""

    plan: FloodPlan
    idle: tuple[Handover, Cost]
    flooded: tuple[Handover, Cost]
    accepted: int
    delivered: int

    def figures(self, arrivals: Arrivals) -> dict[str, Figures]:
        """Return login codes idle and flooded."""
        wall_s = self.flooded[1].wall_s
        flooded = msgspec.structs.replace(
            _figures(*self.flooded, self.plan.flooded, arrivals),
            flood_accepted_per_s=self.accepted / wall_s,
            flood_delivered_per_s=self.delivered / wall_s,
            duplicated=arrivals.duplicates,
        )
        return {"idle": _figures(*self.idle, self.plan.idle, arrivals), "flooded": flooded}


def observe_flood(peer: Peer, sink: Sink, plan: FloodPlan) -> FloodObservation:
    """Carry `plan` out on a running peer; what is left of the flood at the end is left."""
    way = peer.ways[Intake.LOGIN_CODE]
    send(peer, sink, LoadOrder(Intake.LOGIN_CODE, way, plan.warm, plan.connections))
    idle = send(peer, sink, LoadOrder(Intake.LOGIN_CODE, way, plan.idle, plan.connections, plan.pause_s))
    with Load(LoadOrder(Intake.STREAM, peer.ways[Intake.STREAM], plan.flood, 1)) as flood:
        flood.start()
        _await_begin(sink, plan.flood)
        accepted, delivered = _progress(peer, sink, plan)
        flooded = send(
            peer, sink, LoadOrder(Intake.LOGIN_CODE, way, plan.flooded, plan.connections, plan.pause_s)
        )
        accepted_then, delivered_then = _progress(peer, sink, plan)
    if delivered_then == plan.messages:
        raise BenchError("the flood was over before the login codes were; use more --messages")
    return FloodObservation(plan, idle, flooded, accepted_then - accepted, delivered_then - delivered)


def _await_begin(sink: Sink, flood: range) -> None:
    given_up_s = time.monotonic() + BEGIN_TIMEOUT_S
    while not sink.count(flood[:1000]):
        if time.monotonic() > given_up_s:
            raise BenchError("nothing of the flood reached the sink")
        time.sleep(LOOK_S)


def _progress(peer: Peer, sink: Sink, plan: FloodPlan) -> tuple[int, int]:
    """Return how many of the flood were accepted and delivered so far."""

    async def accepted() -> int:
        async with Redis(unix_socket_path=peer.ways[Intake.STREAM]) as redis:
            return await acknowledged(redis)

    return asyncio.run(accepted()), sink.count(plan.flood)


def _figures(handover: Handover, cost: Cost, tokens: range, arrivals: Arrivals) -> Figures:
    return Figures(
        **waits(handover, arrivals, acceptance=True),
        lost=sum(token not in arrivals.at_ns for token in tokens),
        duplicated=0,
        elsewhere_cores=cost.elsewhere_s / cost.wall_s,
    )
