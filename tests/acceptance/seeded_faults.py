"""Bugs that the crash matrix must catch, each seeded into a `mailkeep` process before it starts. None of it is ever shipped."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from mailkeep.core.decide import decide
from mailkeep.core.delivery import AttemptStatus, Certainty
from mailkeep.core.outcome import Phase, Scope, Severity, Verdict, uniform
from mailkeep.core.queue import FinishedAttempt
from mailkeep.dispatch.replica import Replica
from mailkeep.dispatch.worker import AttemptWorkerPool
from mailkeep.intake import stream
from mailkeep.intake.accept import Accept
from mailkeep.store import postgres, queries

_TASKS: Final[set[Any]] = set()


def answered_before_commit() -> None:
    """The producer is answered while the commit is still to come."""
    store = Accept.store

    def store_later(self: Accept, prepared: Any) -> Any:
        _TASKS.add(store(self, prepared))
        answered = asyncio.get_running_loop().create_future()
        answered.set_result(prepared.new.id)
        return answered

    Accept.store = store_later  # the bug


def recorded_before_dot() -> None:
    """`sent` is recorded before the next hop has the mail."""
    send = AttemptWorkerPool._send

    async def record_and_send(self: AttemptWorkerPool, claim: Any, message: bytes, fence: Any) -> Any:
        outcome = uniform(
            tuple(range(len(claim.recipients))),
            Verdict(Severity.SUCCESS, Scope.MESSAGE, "too early"),
            status=AttemptStatus.PROVIDER_ACCEPTED,
            certainty=Certainty.DELIVERED,
            phase=Phase.DOT,
        )
        decision = decide(
            states=claim.recipient_states,
            outcome=outcome,
            guarantee=claim.guarantee,
            ladder_s=(),
            rungs_used=0,
            park_s=1.0,
            chance=0.5,
        )
        await self._recorder.finish(FinishedAttempt(claim, outcome, decision))
        return await send(self, claim, message, fence)

    AttemptWorkerPool._send = record_and_send  # the bug


def not_fenced() -> None:
    """A replica that lost its claims goes on as if it held them."""
    fenced = queries.query_between
    Replica.may_send = property(lambda _self: True)  # the bug
    Replica.holds = lambda _self, _id: True  # the bug
    postgres.query_between = lambda *of: _without_fence(fenced(*of))  # the bug


def _without_fence(text: str) -> str:
    for fence in (" AND (d.claimed_by = i.replica_id) IS TRUE", " AND d.claim_token = i.claim_token"):
        text = text.replace(fence, "")
    return text


def acknowledged_before_commit() -> None:
    """Stream entries are acknowledged before PostgreSQL has them."""
    take = stream.CommandConsumer._take

    async def acknowledge_and_take(self: Any, client: Any, entries: Any) -> None:
        await client.xack(stream.STREAM, stream.GROUP, *[entry.id for entry in entries])
        await take(self, client, entries)

    stream.CommandConsumer._take = acknowledge_and_take  # the bug


FAULTS: Final[dict[str, Callable[[], None]]] = {
    seeded.__name__: seeded
    for seeded in (answered_before_commit, recorded_before_dot, not_fenced, acknowledged_before_commit)
}


def seed(name: str) -> None:
    """Break this process with the bug of that name."""
    FAULTS[name]()
