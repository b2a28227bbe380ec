"""Next hops that are slow or silent: what a service makes of many connections, and of one hop that stalls beside a good one.

`observe_slow`: each reply comes 200 ms after its command. A transaction is two flights (RFC 2920: the envelope with DATA, then
the content with its dot), so that a connection can carry 2.5 messages a second and 100 of them 250: the arithmetic. It holds
while mail waits for connections, so the hop greets nobody until all mail has been accepted. What a service then reaches is
judged between the first tenth and the last of the messages, without the opening of connections.

`observe_stalled`: a hop that takes messages and never answers their dots is filled with mail first; then what the good one
gets is measured as ever.
"""

from typing import Final

import msgspec

from bench.load import LoadOrder
from bench.mail import STALLED_DOMAIN
from bench.peer import Intake, Peer
from bench.run import Cost, Figures, Meter, Observation, Plan, await_arrivals, observe, send
from bench.sink import Arrivals, Sink

DELAY_S: Final = 0.2
FLIGHTS: Final = 2  # of one transaction
CONNECTIONS: Final = 100
SETTINGS: Final = {
    "MAIL_SMTP_MAX_CONNECTIONS": str(CONNECTIONS),
    "MAIL_ATTEMPT_WORKER_CONCURRENCY": "200",  # a hop may hold three quarters of these
    "MAIL_SMTP_TIMEOUT": "30m",  # the greeting comes when all mail is there
    "MAIL_SHUTDOWN_TIMEOUT": "2s",  # attempts at a stalled hop don't end by themselves
}
ARITHMETIC_PER_S: Final = CONNECTIONS / (FLIGHTS * DELAY_S)
STALLED_MESSAGES: Final = 1000  # more than the places that one hop may have
BEFORE: Final = 10_000_000  # the tokens of mail to the stalled hop, far from all others


class SlowObservation(msgspec.Struct, frozen=True):
    """What was seen of one slow hop: what it took to accept all mail, and then to send it."""

    name: str
    plan: Plan
    accepting: Cost
    sending: Cost

    def figures(self, arrivals: Arrivals) -> dict[str, Figures]:
        """Return the rate in the middle of the run, and its share of the arithmetic."""
        at_ns = sorted(at_ns for token, at_ns in arrivals.at_ns.items() if token in self.plan.bulk)
        middle = at_ns[len(at_ns) // 10 : -len(at_ns) // 10]
        per_s = (len(middle) - 1) / (middle[-1] - middle[0]) * 1e9
        figures = Figures(
            delivered_per_s=per_s,
            share_of_arithmetic=per_s / ARITHMETIC_PER_S,
            lost=self.plan.messages - len(at_ns),
            duplicated=arrivals.duplicates,
            load_cpu_ms=self.accepting.measuring_s["load"] / self.plan.messages * 1000,
            sink_cpu_ms=self.sending.measuring_s["sink"] / self.plan.messages * 1000,
            elsewhere_cores=self.sending.elsewhere_s / self.sending.wall_s,
        )
        return {self.name: figures}


def observe_slow(peer: Peer, sink: Sink, plan: Plan) -> SlowObservation:
    """Give a peer whose hop is slow all it is to send, and only then the hop."""
    order = LoadOrder(peer.intake, peer.ways[peer.intake], plan.bulk, plan.connections)
    _, accepting = send(peer, sink, order, until=0)
    meter = Meter(peer, {"sink": sink.pid})
    try:
        sink.open()
        await_arrivals(sink, plan.bulk, plan.messages, meter)
        return SlowObservation(peer.name, plan, accepting, meter.cost())
    finally:
        meter.end()


def observe_stalled(peer: Peer, sink: Sink, plan: Plan, stalled: Sink | None) -> Observation:
    """Measure the good hop as ever; beside `stalled`, which has been given mail, where there is one."""
    if stalled is not None:
        tokens = range(BEFORE, BEFORE + STALLED_MESSAGES)
        order = LoadOrder(
            Intake.HTTP_RENDERED, peer.ways[peer.intake], tokens, plan.connections, domain=STALLED_DOMAIN
        )
        send(peer, stalled, order, until=1)
    return observe(peer, sink, plan)


def routes(good: Sink, stalled: Sink) -> str:
    """Return a MAIL_ROUTES_FILE with both hops."""
    return (
        f'[hop.default]\naddresses = ["127.0.0.1:{good.port}"]\n'
        f'[hop.stalled]\ndomains = ["{STALLED_DOMAIN}"]\naddresses = ["127.0.0.1:{stalled.port}"]\n'
    )
