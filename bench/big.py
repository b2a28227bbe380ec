"""Big mail: attachments of 10 MB, over HTTP. How long the service's event loop stands still, and how much memory it takes."""

from typing import Final

import msgspec

from bench.load import LoadOrder
from bench.peer import Intake, Peer
from bench.prober import Prober
from bench.run import Figures, Observation, Plan, send
from bench.sink import Arrivals, Sink

CONNECTIONS: Final = 4
"""Callers at a time: each holds 13 MB of JSON."""


class BigObservation(msgspec.Struct, frozen=True):
    """What was seen; `stalls_ms` of the service and of a process that does nothing."""

    sending: Observation
    stalls_ms: tuple[float, float]

    def figures(self, arrivals: Arrivals) -> dict[str, Figures]:
        """Return the figures of mail, with stalls."""
        service_ms, machine_ms = self.stalls_ms
        return {
            name: msgspec.structs.replace(figures, loop_stall_ms=service_ms, machine_stall_ms=machine_ms)
            for name, figures in self.sending.figures(arrivals).items()
        }


def observe_big(peer: Peer, sink: Sink, idle_port: int, plan: Plan) -> BigObservation:
    """Send `plan` and probe the service meanwhile, beside a process at `idle_port` that does nothing."""
    port = peer.ways[Intake.HTTP_BIG]
    send(peer, sink, LoadOrder(Intake.HTTP_RENDERED, port, plan.warm, CONNECTIONS))
    sink.take()  # small mail, which would make the others' size wrong
    plan = msgspec.structs.replace(plan, first=plan.warm.stop, warm_messages=0)
    with Prober([int(port), idle_port]) as prober:
        prober.begin()
        bulk, cost = send(peer, sink, LoadOrder(Intake.HTTP_BIG, port, plan.bulk, CONNECTIONS), plan.sample_s)
        service_ms, machine_ms = prober.longest_ms()
    return BigObservation(
        Observation(peer.name, peer.intake, plan, None, bulk, cost, None), (service_ms, machine_ms)
    )
