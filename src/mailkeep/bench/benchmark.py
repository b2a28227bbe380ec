"""A benchmark of a deployment: mail for the sinkhole as fast as it is taken, within bounds, and what became of each.

Recipients are of `sinkhole.test` and nowhere else, so that no mail leaves. First one mail goes all the way: where that
does not arrive there are no figures, and the reason is told. What became of the others is read from the events, by
the prefix of their idempotency keys. What has not ended when patience does is cancelled: a benchmark leaves no backlog, only ended
deliveries, which go with retention.
"""

import asyncio
import itertools
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from string import ascii_lowercase
from typing import Final
from uuid import UUID, uuid4

import msgspec
import psutil

from mailkeep.bench.figures import Cpu, Findings, Settled, findings
from mailkeep.bench.ways import AwayError, RefusedError, Way
from mailkeep.client import Mail
from mailkeep.core.delivery import DeliveryStatus
from mailkeep.core.event import Cursor
from mailkeep.operator.changes import NoSuchDeliveryError, OperatorVerbs, Why, WrongStatusError
from mailkeep.operator.queue import OperatorQueue
from mailkeep.store.changes import Verb
from mailkeep.store.events import Events
from mailkeep.store.postgres import Store

PROBE_S: Final = 15.0
"""For the first mail to arrive: a takeover, and a look of the sinkhole at its mode, are over by then."""
LOOK_S: Final = 0.25
PAGE: Final = 1000
TEXT_LINES: Final = 32
"""Of 64 octets: 2 kB, as a notification has."""
WHY: Final = Why("left over from a benchmark", "mailkeep bench")


class Plan(msgspec.Struct, frozen=True):
    """The bounds: what comes first ends the sending. `patience_s` is for what is under way then."""

    messages: int
    seconds: float
    patience_s: float
    domain: str


class Progress(msgspec.Struct, frozen=True):
    """How far it is."""

    accepted: int
    ended: int


class Benchmark:
    """Sends by `way`; what became of the mail stands in `store`. `tell` is told a few times a second how far it is."""

    def __init__(self, store: Store, way: Way, plan: Plan, tell: Callable[[Progress], None]) -> None:
        self._store, self._way, self._plan, self._tell = store, way, plan, tell
        self._run = f"bench-{uuid4().hex[:12]}"
        self._events = Events(store)
        self._cursor = Cursor(0, 0)
        self._ids: set[UUID] = set()
        self._settled: dict[UUID, Settled] = {}
        self._numbers = iter(range(plan.messages))
        self._fault: RefusedError | AwayError | None = None
        self._stopping, self._has_sent = asyncio.Event(), asyncio.Event()

    def stop(self) -> None:
        """Send nothing more; what is under way is awaited."""
        self._stopping.set()

    async def run(self) -> Findings:
        """Carry the plan out. Raises `RefusedError`, `AwayError` and `StoreUnavailableError`."""
        self._cursor = await self._events.before_last(0)
        try:
            await self._probe()
            processes = await self._local_replicas()
            begin_s, own_begin_s = _cpu_s(processes), time.process_time()
            await self._send_all()
            cpu = self._cpu(processes, _cpu_s(processes) - begin_s, time.process_time() - own_begin_s)
        finally:
            await self._cancel_rest()
        if isinstance(self._fault, AwayError):
            raise self._fault
        return findings(
            via=self._way.name,
            accepted=len(self._ids),
            refused=int(self._fault is not None),
            settled=list(self._settled.values()),
            request_ms=self._way.request_ms,
            cpu=cpu,
            interrupted=self._stopping.is_set(),
        )

    async def _probe(self) -> None:
        """Send one mail, and see it arrive. Raises `RefusedError`."""
        (probe,) = await self._way.hand_over([self._mail("probe")])
        self._ids.add(probe)
        ends_at = time.monotonic() + PROBE_S
        while probe not in self._settled and time.monotonic() < ends_at:
            await self._look()
            await asyncio.sleep(LOOK_S)
        if probe not in self._settled or self._settled[probe].status is not DeliveryStatus.SENT:
            raise RefusedError(await self._why_not(probe))
        self._ids.clear()
        self._settled.clear()
        self._way.request_ms.clear()

    async def _why_not(self, probe: UUID) -> str:
        delivery = await OperatorQueue(self._store).delivery(probe)
        if delivery is None:
            return (
                "the first mail did not get into the queue: either no `mailkeep serve` reads this stream, or it has no"
                " MAIL_SINKHOLE_ADDR; `mailkeep malformed` tells"
            )
        if delivery.status is DeliveryStatus.SUPPRESSED:
            return "this deployment sends nothing: it has MAIL_SMTP_MODE=stub"
        reason = f"({delivery.reason})" if delivery.reason else f"within {PROBE_S:g} s"
        return (
            f"the first mail is {delivery.status} and did not get to the sinkhole {reason}; is it running, and does it"
            " accept? `mailkeep sinkhole mode accept`"
        )

    async def _send_all(self) -> None:
        """Send within the bounds, then await the rest within patience."""
        watching = asyncio.create_task(self._watch())
        try:
            stops_at = time.monotonic() + self._plan.seconds
            await asyncio.gather(*(self._send(stops_at) for _ in range(self._way.lanes)))
            self._has_sent.set()
            await asyncio.wait((watching,), timeout=self._plan.patience_s)
        finally:
            watching.cancel()
        if watching.done() and not watching.cancelled():
            watching.result()  # what was seen is not all, if it failed

    async def _send(self, ends_at: float) -> None:
        while not self._stopping.is_set() and self._fault is None and time.monotonic() < ends_at:
            if self._way.is_ahead(len(self._ids) - len(self._settled)):
                await asyncio.sleep(LOOK_S)
                continue
            group = list(itertools.islice(self._numbers, self._way.group))
            if not group:
                return
            try:
                self._ids.update(await self._way.hand_over([self._mail(str(number)) for number in group]))
            except (RefusedError, AwayError) as fault:
                self._fault = fault  # ends all lanes

    def _mail(self, name: str) -> Mail:
        return Mail(
            to=f"{self._run}-{name}@{self._plan.domain}",
            subject=f"Benchmark {name}",
            text=_TEXT,
            idempotency_key=f"{self._run}-{name}",
        )

    async def _watch(self) -> None:
        """Look until all that was sent has ended."""
        while not self._has_sent.is_set() or len(self._settled) < len(self._ids):
            await asyncio.sleep(LOOK_S)
            await self._look()
            self._tell(Progress(len(self._ids), len(self._settled)))

    async def _look(self) -> None:
        """Read all events since the last look."""
        while True:
            page = await self._events.page(self._cursor, PAGE)
            self._cursor = page.after
            for stored in page.events:
                data = stored.event.data
                if (data.idempotency_key or "").startswith(self._run):
                    self._settled[data.delivery_id] = Settled(
                        data.accepted_at, stored.event.timestamp, data.status
                    )
            if len(page.events) < PAGE:
                return

    async def _cancel_rest(self) -> None:
        """Cancel what has not ended; what is being sent at this moment is let be."""
        verbs = OperatorVerbs(self._store)
        for delivery_id in self._ids - self._settled.keys():
            with suppress(NoSuchDeliveryError, WrongStatusError):
                await verbs.change(Verb.CANCEL, delivery_id, WHY)
        await self._look()

    async def _local_replicas(self) -> list[psutil.Process]:
        """Return the processes of live replicas on this machine."""
        here = socket.gethostname()
        found = []
        for replica in await OperatorQueue(self._store).replicas():
            if replica.state == "live" and replica.host == here:
                with suppress(psutil.Error):
                    found.append(psutil.Process(replica.pid))
        return found

    def _cpu(self, processes: list[psutil.Process], service_s: float, own_s: float) -> Cpu:
        mails = max(len(self._settled), 1)
        return Cpu(
            replicas=len(processes),
            service_ms_per_mail=service_s / mails * 1000 if processes else None,
            benchmark_ms_per_mail=own_s / mails * 1000,
        )


def _cpu_s(processes: list[psutil.Process]) -> float:
    total_s = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            total_s += times.user + times.system
    return total_s


def _text() -> str:
    rng = random.Random(2048)  # noqa: S311 - words, not secrets
    return "".join("".join(rng.choices(ascii_lowercase, k=63)) + "\n" for _ in range(TEXT_LINES))


_TEXT: Final = _text()
