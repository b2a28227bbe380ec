"""The load client: hands mail to a peer and notes when each hand-over began and was accepted.

A process of its own, with every request built before the clock starts, so that it takes little of the CPU that is being
measured and about the same for every peer. Over HTTP, SMTP and SQL a message is accepted when that is answered; in the
stream it is when Mailkeep acknowledged it, which is looked up every few milliseconds.
"""

import asyncio
import itertools
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Final

import msgspec
import uvloop
from redis.asyncio import Redis

from bench.child import Child
from bench.clients import Client, acknowledged, connect
from bench.errors import BenchError
from bench.mail import DOMAIN, Message, build
from bench.peer import Intake

LOOK_S: Final = 0.02  # between looks at what was acknowledged
MAX_AHEAD: Final = 10_000  # messages handed over and not accepted: adding must not crowd out what is measured
CONNECTIONS: Final = {Intake.STREAM: 1, Intake.SQL: 4}  # else what the plan says
GROUP: Final = {Intake.STREAM: 100, Intake.SQL: 100}  # messages of one hand-over: a pipeline, a transaction


class LoadOrder(msgspec.Struct, frozen=True):
    """What to send: `tokens` over `connections`, as fast as they are accepted or one every `pause_s`."""

    intake: Intake
    way: str
    tokens: range
    connections: int
    pause_s: float = 0.0
    domain: str = DOMAIN


class Handover(msgspec.Struct, frozen=True):
    """When each token was offered and when it was accepted; `time.monotonic_ns`."""

    started_ns: dict[int, int]
    accepted_ns: dict[int, int]

    @property
    def ahead(self) -> int:
        """How many were offered and are not accepted yet."""
        return len(self.started_ns) - len(self.accepted_ns)


class Load(Child):
    """The load client's process: `with Load(order) as load:` builds the messages; then `start`, and `result` when `done`."""

    def __init__(self, order: LoadOrder) -> None:
        super().__init__(_run, order)

    def start(self) -> None:
        """Start the clock."""
        self.send("start")

    def done(self, timeout_s: float) -> bool:
        """Wait until the order is carried out, at most `timeout_s`."""
        return self.said(timeout_s)

    def result(self) -> Handover:
        """Return the outcome. Raises `BenchError` if the peer refused or broke off."""
        outcome: Handover | str = self.receive()
        if isinstance(outcome, str):
            raise BenchError(outcome)
        return outcome


def _run(pipe: Connection, order: LoadOrder) -> None:
    messages = build(order.intake, order.tokens, order.domain)
    pipe.send("ready")
    pipe.recv()
    try:
        pipe.send(uvloop.run(_carry_out(order, messages)))
    except (BenchError, OSError) as fault:
        pipe.send(str(fault))


async def _carry_out(order: LoadOrder, messages: Iterable[Message]) -> Handover:
    connections = CONNECTIONS.get(order.intake, order.connections)
    clients = [await connect(order.intake, order.way) for _ in range(connections)]
    handover = Handover({}, {})
    begin_s = asyncio.get_running_loop().time()
    due_s = (begin_s + place * order.pause_s for place in itertools.count())
    queue = zip(due_s, order.tokens, messages, strict=False)
    sending = [_send(client, queue, order, handover) for client in clients]
    if order.intake is Intake.STREAM:
        redis = Redis(unix_socket_path=order.way)
        sending.append(_note_acknowledged(redis, await acknowledged(redis), order.tokens, handover))
    await asyncio.gather(*sending)
    for client in clients:
        client.close()
    return handover


async def _send(
    client: Client, queue: Iterator[tuple[float, int, Message]], order: LoadOrder, handover: Handover
) -> None:
    loop = asyncio.get_running_loop()
    size = 1 if order.pause_s else GROUP.get(order.intake, 1)
    while group := list(itertools.islice(queue, size)):
        due_s = group[0][0]
        if due_s > loop.time():
            await asyncio.sleep(due_s - loop.time())
        while handover.ahead > MAX_AHEAD:  # noqa: ASYNC110 - what the peer acknowledged can only be looked up
            await asyncio.sleep(LOOK_S)
        tokens = [token for _, token, _ in group]
        handover.started_ns.update(dict.fromkeys(tokens, time.monotonic_ns()))
        await client.hand_over([message for _, _, message in group])
        if order.intake is not Intake.STREAM:
            handover.accepted_ns.update(dict.fromkeys(tokens, time.monotonic_ns()))


async def _note_acknowledged(redis: Any, before: int, tokens: range, handover: Handover) -> None:
    """Note tokens as accepted, in their order, as acknowledged entries get more than they were `before`."""
    waiting = iter(tokens)
    while len(handover.accepted_ns) < len(tokens):
        fresh = await acknowledged(redis) - before - len(handover.accepted_ns)
        handover.accepted_ns.update(dict.fromkeys(itertools.islice(waiting, fresh), time.monotonic_ns()))
        await asyncio.sleep(LOOK_S)
    await redis.aclose()
