"""The attempt worker pool: each claim becomes one attempt, a straight pipeline of load, converse, decide, record.

Every failure is an `Outcome` before anything is written, and nothing is written in the same breath as it is sent. The
pool holds a bounded number of claims in memory, shared fairly between classes; at most `concurrency` attempts run at
once, and towards one next hop no more than its connections and its breaker allow.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog
from opentelemetry.trace import Span

from mailkeep.core.address import domain_of
from mailkeep.core.decide import decide
from mailkeep.core.delivery import (
    AttemptStatus,
    Certainty,
    DeliveryClass,
    Guarantee,
    RecipientState,
)
from mailkeep.core.outcome import Outcome, Phase, Scope, Severity, Verdict, uniform
from mailkeep.core.queue import Claim, FinishedAttempt, HopOut
from mailkeep.dispatch.breaker import Breaker, BreakerState
from mailkeep.dispatch.crowd import Crowd
from mailkeep.dispatch.recorder import Recorder
from mailkeep.dispatch.replica import Replica
from mailkeep.dispatch.right_of_way import RightOfWay
from mailkeep.dispatch.shares import PRIORITY, Shares
from mailkeep.faults import FaultPoint, armed, reach
from mailkeep.smtp.envelope import Envelope
from mailkeep.smtp.next_hop import NextHop
from mailkeep.smtp.pool import Pool
from mailkeep.smtp.routes import may_leave
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.postgres import Store
from mailkeep.store.sealing import SealedError
from mailkeep.telemetry import metrics, tracing

HELD_PER_WORKER: Final = 8
"""Claims held in memory for each worker: enough that none idles while the next batch is claimed."""
HELD_BYTES: Final = 64 * 1024 * 1024
"""Message bytes held for claims at birth; past it new mail waits in the table."""
LARGE_LOADS: Final = 2
"""Attempts with a message too large for its claim that run at once towards one next hop; bounds memory to so many of them."""
PARK_S: Final = 1.0
"""How long mail of a next hop that is out waits at least; after that the breaker decides."""
RECORDING_MARGIN_S: Final = 2.0
"""Kept at the end of a shutdown for recording what the last attempts brought."""

CLAIM_LOST: Final = "claim_lost"
RESERVED_DOMAIN: Final = "reserved_domain"


class ClaimFence:
    """What the SMTP session asks before it commits to anything (see `mailkeep.smtp.pool.Fence`)."""

    def __init__(self, claim: Claim, replica: Replica, recorder: Recorder) -> None:
        self._claim = claim
        self._replica = replica
        self._recorder = recorder
        self.dot_has_left = False
        self.commit_dot = self._commit_dot if claim.guarantee is Guarantee.AT_MOST_ONCE else None

    def may_open_transaction(self) -> bool:
        """Whether MAIL may be sent."""
        reach(FaultPoint.TRANSACTION_BEGINS)
        return self._may_send()

    def dot_allowed(self) -> bool:
        """Whether the final dot may be sent, as far as this process knows by itself."""
        reach(FaultPoint.BEFORE_DOT)
        return self._may_send()

    def dot_left(self) -> None:
        """Note that the final dot is on its way: from here on the outcome may be unknown."""
        self.dot_has_left = True
        if armed(FaultPoint.AFTER_DOT):
            asyncio.get_running_loop().call_soon(reach, FaultPoint.AFTER_DOT)

    def _may_send(self) -> bool:
        # Past its time a claim is given back, and the scheduler ends the delivery `expired`.
        expires_at = self._claim.expires_at
        in_time = expires_at is None or expires_at.timestamp() > self._replica.now_s()
        return in_time and self._replica.holds(self._claim.replica_id)

    async def _commit_dot(self) -> bool:
        return await self._recorder.mark_dot(self._claim)


class AttemptWorkerPool:
    """Runs attempts for the claims that are handed over to it. One a process."""

    def __init__(
        self,
        *,
        store: Store,
        replica: Replica,
        recorder: Recorder,
        smtp: Pool,
        hops: Mapping[str, NextHop],
        ladders: Mapping[DeliveryClass, tuple[float, ...]],
        concurrency: int,
        right_of_way: RightOfWay,
    ) -> None:
        self._store = store
        self._replica = replica
        self._recorder = recorder
        self._smtp = smtp
        self._hops = hops
        self._ladders = ladders
        self._right_of_way = right_of_way
        right_of_way.on_clear = self._begin_attempts
        several = len(hops) > 1
        self._workers = Shares(concurrency, several_hops=several)
        self._places = Shares(concurrency * HELD_PER_WORKER, several_hops=several)
        self._waiting: dict[tuple[DeliveryClass, str], deque[Claim]] = {
            (delivery_class, hop): deque() for delivery_class in PRIORITY for hop in hops
        }
        # Login codes are never many, and wait for nobody.
        self._crowds: dict[tuple[DeliveryClass, str], Crowd] = {
            (delivery_class, hop): Crowd(concurrency)
            for delivery_class, hop in self._waiting
            if delivery_class is not DeliveryClass.AUTH
        }
        self._active: Counter[str] = Counter()
        self._attempts: dict[asyncio.Task[None], ClaimFence] = {}
        self._returns: set[asyncio.Task[None]] = set()
        self._held_bytes = 0
        self._large = {hop: asyncio.Semaphore(LARGE_LOADS) for hop in hops}
        self._short: set[tuple[DeliveryClass, str]] = (
            set()
        )  # not asked for at the last look, for want of room
        self._stopping = False
        self._log = structlog.get_logger("attempt_worker_pool")
        self.held: dict[UUID, Claim | None] = {}
        """What this process claims: a claim, or None while it is still being born in a commit."""
        self.has_room = asyncio.Event()
        """Set when there is room again for a batch of a class and next hop that the last `wanted` left out."""
        self.breakers = {
            name: Breaker(min(hop.max_connections, concurrency), time.monotonic) for name, hop in hops.items()
        }

    # -- claims in ---------------------------------------------------------------------------------------------

    def reserve(self, delivery_id: UUID, hop: str, delivery_class: DeliveryClass, size_bytes: int) -> bool:
        """Take a place for a delivery that is about to be born claimed; False: let it wait in the table."""
        if (
            self._stopping
            or not self._replica.may_send
            or not self._places.room(delivery_class, hop)
            or self.breakers[hop].state is not BreakerState.CLOSED
            or (self._held_bytes and self._held_bytes + size_bytes > HELD_BYTES)
        ):
            return False
        self.held[delivery_id] = None
        self._occupy(hop, delivery_class, size_bytes)
        return True

    def cancel(self, delivery_id: UUID, hop: str, delivery_class: DeliveryClass, size_bytes: int) -> None:
        """Give the place of a delivery back that was not born after all."""
        del self.held[delivery_id]
        self._vacate(hop, delivery_class, size_bytes)

    def hand_over(self, claim: Claim, *, reserved: bool = False) -> None:
        """Take on a claim whose commit is known; its attempt begins as soon as a worker is free."""
        if not reserved:
            self._occupy(claim.next_hop, claim.delivery_class, len(claim.message or b""))
        self.held[claim.id] = claim
        self._replica.in_flight = len(self.held)
        self._waiting[claim.delivery_class, claim.next_hop].append(claim)
        self._begin_attempts()

    def _occupy(self, hop: str, delivery_class: DeliveryClass, size_bytes: int) -> None:
        self._places.take(delivery_class, hop)
        self._held_bytes += size_bytes

    def _vacate(self, hop: str, delivery_class: DeliveryClass, size_bytes: int) -> None:
        self._places.give(delivery_class, hop)
        self._held_bytes -= size_bytes

    def wanted(self) -> list[tuple[str, DeliveryClass, int]]:
        """Return how many due deliveries of each next hop and class this pool would take now, most urgent first.

        Each is a bound of its own; all of them together it takes no more than `free_places`.
        """
        if self._stopping or not self._replica.may_send:
            return []
        asked: list[tuple[str, DeliveryClass, int]] = []
        self._short.clear()
        for delivery_class, hop in self._waiting:
            if not self._admits(hop):
                continue
            if self._has_room(delivery_class, hop):
                probes = self.breakers[hop].state is not BreakerState.CLOSED
                asked.append((hop, delivery_class, 1 if probes else self._places.room(delivery_class, hop)))
            else:
                self._short.add((delivery_class, hop))
        return asked

    def _has_room(self, delivery_class: DeliveryClass, hop: str) -> bool:
        # The next batch is claimed when there is room for as much as still waits of the last one: mail comes in batches,
        # not one by one. Login codes come at once.
        room = self._places.room(delivery_class, hop)
        if delivery_class is DeliveryClass.AUTH:
            return room > 0
        return room > 0 and room >= len(self._waiting[delivery_class, hop])

    @property
    def free_places(self) -> int:
        """How many more claims may be held in memory."""
        return self._places.free

    def _admits(self, hop: str) -> bool:
        # A hop whose connections are all busy is asked for its next batch all the same; one that is out is not.
        breaker = self.breakers[hop]
        return breaker.state is BreakerState.CLOSED or breaker.allowance(self._active[hop]) > 0

    # -- attempts ----------------------------------------------------------------------------------------------

    def _begin_attempts(self) -> None:
        while (claim := self._next_claim()) is not None:
            self._workers.take(claim.delivery_class, claim.next_hop)
            self._active[claim.next_hop] += 1
            self.breakers[claim.next_hop].began()
            fence = ClaimFence(claim, self._replica, self._recorder)
            if crowd := self._crowds.get((claim.delivery_class, claim.next_hop)):
                crowd.begin()
            attempt = asyncio.create_task(self._attempt(claim, fence, time.monotonic()))
            self._attempts[attempt] = fence
            attempt.add_done_callback(self._attempts.pop)

    def _next_claim(self) -> Claim | None:
        for (delivery_class, hop), claims in self._waiting.items():
            if (
                claims
                and self._may_begin(delivery_class, hop)
                and self._workers.room(delivery_class, hop)
                and self.breakers[hop].allowance(self._active[hop])
            ):
                return claims.popleft()
        return None

    def _may_begin(self, delivery_class: DeliveryClass, hop: str) -> bool:
        crowd = self._crowds.get((delivery_class, hop))
        return crowd is None or (self._right_of_way.is_clear and crowd.has_room)

    async def _attempt(self, claim: Claim, fence: ClaimFence, begun_s: float) -> None:
        number = claim.attempts + 1
        with tracing.attempt_span(
            claim.traceparent, delivery_id=claim.id, number=number, route=claim.next_hop
        ) as span:
            await self._try(claim, fence, begun_s, span)

    async def _try(self, claim: Claim, fence: ClaimFence, begun_s: float, span: Span) -> None:
        waited_s = time.monotonic() - begun_s
        reach(FaultPoint.ATTEMPT_BEGINS)
        try:
            with self._passage(claim):
                outcome = await self._converse(claim, fence)
        except asyncio.CancelledError:
            outcome = _interrupted(claim, "shutdown", after_dot=True) if fence.dot_has_left else None
        except Exception:  # noqa: BLE001 - a boundary
            # A boundary: a fault of ours must not leave a claim behind that nobody works on.
            self._log.exception("attempt failed by a fault of Mailkeep", delivery_id=str(claim.id))
            outcome = _interrupted(claim, "internal_fault", after_dot=fence.dot_has_left)
        finally:
            self._active[claim.next_hop] -= 1
            self._workers.give(claim.delivery_class, claim.next_hop)
            if crowd := self._crowds.get((claim.delivery_class, claim.next_hop)):
                crowd.end(waited_s, time.monotonic() - begun_s)
        reach(FaultPoint.OUTCOME_KNOWN)
        self._learn(claim, outcome)
        if not self._stopping:
            self._begin_attempts()
        if outcome is None or outcome.rule == CLAIM_LOST:
            await self._return(claim)
        else:
            await self._record(claim, outcome, span)

    def _passage(self, claim: Claim) -> AbstractContextManager[None]:
        return self._right_of_way.passing() if claim.delivery_class is DeliveryClass.AUTH else nullcontext()

    async def _converse(self, claim: Claim, fence: ClaimFence) -> Outcome | None:
        if claim.unopened is not None:
            return _unopened(claim, claim.unopened)
        if claim.message is not None:
            return await self._send(claim, claim.message, fence)
        async with self._large[claim.next_hop]:
            try:
                message = await self._store.load_message(claim.id)
            except StoreUnavailableError:
                return None
            except SealedError as fault:
                return _unopened(claim, str(fault))
            return _no_content(claim) if message is None else await self._send(claim, message, fence)

    async def _send(self, claim: Claim, message: bytes, fence: ClaimFence) -> Outcome:
        assert claim.sender is not None
        recipients = tuple(
            (ordinal, address)
            for ordinal, address in enumerate(claim.recipients)
            if claim.recipient_states[ordinal] == RecipientState.OPEN
        )
        if not all(may_leave(domain_of(address), claim.next_hop) for _, address in recipients):
            self._log.error(
                "reserved domain refused at its route", delivery_id=str(claim.id), next_hop=claim.next_hop
            )
            metrics.count(metrics.RESERVED_DOMAIN, (("route",),))
            return _not_to_leave(claim)
        envelope = Envelope(
            sender=claim.sender,
            recipients=recipients,
            message=message,
            smtputf8=not all(address.isascii() for _, address in recipients),
            eightbit=not message.isascii(),
        )
        return await self._smtp.send(self._hops[claim.next_hop], envelope, fence)

    def _learn(self, claim: Claim, outcome: Outcome | None) -> None:
        breaker = self.breakers[claim.next_hop]
        if outcome is None or outcome.rule == CLAIM_LOST or outcome.phase is Phase.RENDER:
            breaker.withdrawn()
        elif breaker.ended(outcome):
            self._log.warning(
                "breaker changed", next_hop=claim.next_hop, state=breaker.state, cause=breaker.last_cause
            )
            self._tell(claim.next_hop, breaker)
        if breaker.wait_s():
            self._return_waiting(claim.next_hop)

    def _tell(self, hop: str, breaker: Breaker) -> None:
        if breaker.state is BreakerState.CLOSED:
            self._replica.hops_out.pop(hop, None)
        else:
            since = datetime.fromtimestamp(self._replica.now_s(), UTC)
            self._replica.hops_out[hop] = HopOut(breaker.last_cause, since)

    async def _record(self, claim: Claim, outcome: Outcome, span: Span) -> None:
        tracing.tell_outcome(
            span,
            status=outcome.status,
            phase=outcome.phase,
            rule=outcome.rule,
            certainty=outcome.certainty,
            delivered=outcome.severity is Severity.SUCCESS,
        )
        # Here, within the span, so that a sampled one is the example of its duration (exemplars).
        metrics.observe_send(outcome.duration_ms, route=claim.next_hop, phase=outcome.phase)
        decision = decide(
            states=claim.recipient_states,
            outcome=outcome,
            guarantee=claim.guarantee,
            ladder_s=self._ladders[claim.delivery_class],
            rungs_used=claim.rungs_used,
            park_s=PARK_S,
            chance=random.random(),  # noqa: S311 - jitter, not a secret
        )
        status = await self._recorder.finish(FinishedAttempt(claim, outcome, decision))
        self._forget(claim)
        if status is not None and outcome.severity is not Severity.SUCCESS:
            self._log.info(
                "attempt did not deliver",
                delivery_id=str(claim.id),
                attempt=claim.attempts + 1,
                attempt_status=outcome.status,
                phase=outcome.phase,
                rule=outcome.rule,
                reason=outcome.reason,
                delivery_status=status,
                wait_s=decision.wait_s,
            )

    # -- claims out --------------------------------------------------------------------------------------------

    def _forget(self, claim: Claim) -> None:
        self.held.pop(claim.id, None)
        self._vacate(claim.next_hop, claim.delivery_class, len(claim.message or b""))
        self._replica.in_flight = len(self.held)
        if self._short and any(self._has_room(*pair) for pair in self._short):
            self.has_room.set()

    async def _return(self, claim: Claim) -> None:
        try:
            await self._recorder.hand_back(claim)
        except StoreUnavailableError:
            self._log.warning(
                "claim could not be handed back; it is reclaimed later", delivery_id=str(claim.id)
            )
        self._forget(claim)

    def _return_waiting(self, hop: str) -> None:
        for delivery_class in PRIORITY:
            claims = self._waiting[delivery_class, hop]
            while claims:
                returning = asyncio.create_task(self._return(claims.popleft()))
                self._returns.add(returning)
                returning.add_done_callback(self._returns.discard)

    async def stop(self, timeout_s: float) -> None:
        """Hand back what has not begun, let attempts finish, and cut those that take longer than `timeout_s`."""
        self._stopping = True
        ends_at = time.monotonic() + timeout_s
        for hop in self._hops:
            self._return_waiting(hop)
        if self._attempts:
            await asyncio.wait(
                self._attempts, timeout=max(ends_at - time.monotonic() - RECORDING_MARGIN_S, 0)
            )
        for attempt in self._attempts:
            attempt.cancel()
        rest = [*self._attempts, *self._returns]
        if rest:
            await asyncio.wait(rest, timeout=max(ends_at - time.monotonic(), 0))
        self._log.info("attempt worker pool stopped", left=len(self.held))


def _open_ordinals(claim: Claim) -> tuple[int, ...]:
    return tuple(
        ordinal for ordinal, state in enumerate(claim.recipient_states) if state == RecipientState.OPEN
    )


def _interrupted(claim: Claim, rule: str, *, after_dot: bool) -> Outcome:
    return uniform(
        _open_ordinals(claim),
        Verdict(Severity.UNKNOWN if after_dot else Severity.TRANSIENT, Scope.MESSAGE, rule),
        status=AttemptStatus.TRANSPORT_FAILED,
        certainty=Certainty.UNKNOWN if after_dot else Certainty.NOT_DELIVERED,
        phase=Phase.DOT if after_dot else Phase.CONNECT,
        text="interrupted on our side" + (" before the reply came" if after_dot else ""),
    )


def _no_content(claim: Claim) -> Outcome:
    return _unsendable(claim, "no_content", "its content is no longer stored")


def _not_to_leave(claim: Claim) -> Outcome:
    # Whole, not recipient by recipient: nothing that intake takes mixes reserved domains with others.
    return _unsendable(
        claim,
        RESERVED_DOMAIN,
        "a recipient's domain is reserved (RFC 2606) and must not leave by this next hop",
    )


def _unsendable(claim: Claim, rule: str, text: str) -> Outcome:
    return uniform(
        _open_ordinals(claim),
        Verdict(Severity.PERMANENT, Scope.MESSAGE, rule),
        status=AttemptStatus.RENDER_FAILED,
        certainty=Certainty.NOT_DELIVERED,
        phase=Phase.RENDER,
        text=text,
    )


def _unopened(claim: Claim, why: str) -> Outcome:
    # Transient: whoever has the key, or has it again, sends it; meanwhile it climbs the ladder like any mail.
    return uniform(
        _open_ordinals(claim),
        Verdict(Severity.TRANSIENT, Scope.MESSAGE, "payload_unopened"),
        status=AttemptStatus.RENDER_FAILED,
        certainty=Certainty.NOT_DELIVERED,
        phase=Phase.RENDER,
        text=f"its payload can't be opened: {why}",
    )
