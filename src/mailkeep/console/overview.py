"""Pages about the whole: queue and throughput now, routes with their breakers, replicas."""

import time
from typing import Final
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mailkeep.console.charts import Chart, stacked
from mailkeep.console.desk import Desk, after
from mailkeep.console.guard import FormError
from mailkeep.console.traffic import LOOKS_KEPT
from mailkeep.core.delivery import AttemptStatus, DeliveryClass
from mailkeep.operator.queue import ReplicaView, route_facts
from mailkeep.store.reads import SHAPE_BOUNDS_MIN, ClassQueue, Shape, ShapeBy

SHAPE_ROWS: Final = 12
COUNT_S: Final = 4.0
"""How long a count of the queue is shown before it is counted anew, however many people look: a million waiting rows take
PostgreSQL a fifth of a second."""
ROUTE_ROWS: Final = 1000
_FAILURES: Final = (
    (AttemptStatus.PROVIDER_REJECTED, "refused or deferred", "amber"),
    (AttemptStatus.TRANSPORT_FAILED, "connection failed", "red"),
    (AttemptStatus.TIMED_OUT, "timed out", "violet"),
)


class OverviewPages:
    """The pages about the whole."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._counted: tuple[dict[str, ClassQueue], Shape] | None = None
        self._counted_until = 0.0  # monotonic

    @property
    def routes(self) -> list[BaseRoute]:
        """What they answer."""
        return [
            Route("/", self.overview),
            Route("/live", self.live),
            Route("/routes", self.next_hops),
            Route("/routes/flush", self.flush, methods=["POST"]),
            Route("/replicas", self.replicas),
        ]

    async def overview(self, request: Request) -> Response:
        """Queue and throughput now."""
        return await self._show(request, "overview")

    async def live(self, request: Request) -> Response:
        """Return the part of it that changes."""
        return await self._show(request, "_overview")

    async def _show(self, request: Request, name: str) -> Response:
        desk = self._desk
        replicas = await desk.queue.replicas()
        schedule, shape = await self._counts()
        live = [replica for replica in replicas if replica.state == "live"]
        hops_out = sorted({hop for replica in live for hop in replica.hops_out})
        return desk.page(
            request,
            name,
            classes=[
                {
                    "name": each,
                    "depth": schedule[each].depth if each in schedule else 0,
                    "oldest_s": schedule[each].oldest_age_ms / 1000 if each in schedule else 0,
                }
                for each in map(str, DeliveryClass)
            ],
            live=len(live),
            in_flight=sum(replica.in_flight for replica in live),
            hops_out=[route_facts(hop, replicas) for hop in hops_out],
            charts=self._charts(),
            since=desk.traffic.looks[0].at if desk.traffic.looks else None,
            shape=shape,
            bounds=SHAPE_BOUNDS_MIN,
        )

    def _charts(self) -> list[Chart]:
        looks = tuple(self._desk.traffic.looks)

        def rate(name: str) -> list[float]:
            return [look.rates.get(name, 0.0) for look in looks]

        attempts = [("delivered", "green", rate(AttemptStatus.PROVIDER_ACCEPTED))]
        attempts += [(label, colour, rate(status)) for status, label, colour in _FAILURES]
        waiting = [
            (name, colour, [float(look.waiting.get(name, 0)) for look in looks])
            for name, colour in zip(map(str, DeliveryClass), ("blue", "teal", "violet"), strict=True)
        ]
        return [
            stacked("Accepted", "a second", [("accepted", "blue", rate("accepted"))], slots=LOOKS_KEPT),
            stacked("Attempts", "a second", attempts, slots=LOOKS_KEPT),
            stacked("Waiting", "deliveries", waiting, slots=LOOKS_KEPT),
        ]

    async def _counts(self) -> tuple[dict[str, ClassQueue], Shape]:
        if self._counted is None or time.monotonic() >= self._counted_until:
            schedule = {row.name: row for row in await self._desk.reads.schedule()}
            self._counted = schedule, await self._desk.reads.shape(ShapeBy.DOMAIN, SHAPE_ROWS)
            self._counted_until = time.monotonic() + COUNT_S
        return self._counted

    async def next_hops(self, request: Request) -> Response:
        """Show the next hops: where they are, whose mail they get, whether they are out."""
        desk = self._desk
        replicas = await desk.queue.replicas()
        shape = await desk.reads.shape(ShapeBy.NEXT_HOP, ROUTE_ROWS)
        waiting = {row.name: row.total for row in shape.rows}
        hops = [
            {
                "name": hop.name,
                "addresses": [str(address.endpoint) for address in hop.addresses],
                "domains": hop.domains,
                "tls": hop.tls,
                "is_verified": hop.tls_verify or bool(hop.tls_fingerprints),
                "has_login": hop.username is not None,
                "connections": hop.max_connections or desk.settings.smtp_max_connections,
                "messages_per_s": hop.messages_per_s,
                "waiting": waiting.pop(hop.name, 0),
                "facts": route_facts(hop.name, replicas),
            }
            for hop in desk.settings.hops
        ]
        return desk.page(
            request,
            "routes",
            hops=hops,
            orphans=sorted(waiting.items()),
            mode=desk.settings.smtp_mode,
            nonce=uuid4().hex,
        )

    async def flush(self, request: Request) -> Response:
        """Make what waits for a next hop due now, and probe it if it is out."""
        form = await self._desk.changes(request)
        next_hop = form.one("next_hop")
        if next_hop not in {hop.name for hop in self._desk.settings.hops}:
            raise FormError("there is no such next hop")
        await self._desk.queue.flush(next_hop=next_hop, force=bool(form.one("force")), why=form.why)
        return after("/routes", "flushed")

    async def replicas(self, request: Request) -> Response:
        """Show the processes that share the queue."""
        replicas = await self._desk.queue.replicas()
        order = {"live": 0, "lost": 1, "stopped": 2}

        def rank(replica: ReplicaView) -> int:
            return order[replica.state]

        return self._desk.page(request, "replicas", replicas=sorted(replicas, key=rank))
