"""The queue as operators see it, over HTTP and on the command line alike: deliveries, attempts, replicas, flush.

Addresses are masked (`a***@d***`); what a filter asks for is validated here, and faults come out as `CommandError`s that
name it. Reads lock nothing. The only change made here is a flush, and it touches waiting deliveries alone.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from mailkeep.core.address import AddressError, parse_mailbox
from mailkeep.core.command import CommandError, FailureCode
from mailkeep.core.delivery import (
    WAITING,
    AttemptStatus,
    DeliveryClass,
    DeliveryStatus,
    RecipientState,
    Source,
)
from mailkeep.core.idempotency import address_hash
from mailkeep.core.outcome import Phase, RecipientOutcome
from mailkeep.core.queue import HopOut
from mailkeep.core.redact import mask_address
from mailkeep.operator.changes import Why, check_why
from mailkeep.store.postgres import Store
from mailkeep.store.reads import (
    Burial,
    DeliveryFilter,
    QueueFilter,
    QueueReads,
    Shape,
    ShapeBy,
    StoredAttempt,
    StoredChange,
    StoredDelivery,
    StoredReplica,
)

MAX_PAGE: Final = 200
"""Deliveries of one page: an answer stays below a megabyte."""
WAITING_WORD: Final = "waiting"
"""Stands for `queued` and `rendered` in a filter."""
FLUSHED: Final = Why("flushed")
"""Recorded where nobody says more: a flush changes no delivery's fate, so it asks for no reason."""
LIVE: Final = WAITING | {DeliveryStatus.SENDING, DeliveryStatus.HELD}

_STATE_WORDS: Final = {
    RecipientState.OPEN: "open",
    RecipientState.SENT: "sent",
    RecipientState.FAILED: "failed",
    RecipientState.SUPPRESSED: "suppressed",
}

E = TypeVar("E", DeliveryStatus, DeliveryClass, Source)


class RecipientView(msgspec.Struct, frozen=True):
    """One recipient; `address` is masked, and None once the payload is erased.

    `reason` is why the suppression list left it out; of all else that befell it the attempts tell.
    """

    address: str | None
    state: str
    reason: str | None


class DeliveryView(msgspec.Struct, frozen=True, rename={"delivery_class": "class"}):
    """One delivery. `due_at` is when the next attempt is due; `reason` and `rule` are of the last that failed."""

    delivery_id: UUID
    status: DeliveryStatus
    delivery_class: str
    source: str
    guarantee: str
    next_hop: str
    domain: str
    recipients: tuple[RecipientView, ...]
    size_bytes: int
    attempts: int
    takeovers: int
    accepted_at: datetime
    due_at: datetime | None
    expires_at: datetime | None
    finished_at: datetime | None
    claimed_by: UUID | None
    template_id: str | None
    catalog_version: str | None
    locale: str | None
    reason: str | None
    rule: str | None
    parent_id: UUID | None
    dead_letter: Burial | None


class StepView(msgspec.Struct, frozen=True):
    """One exchange of the SMTP dialog, `at_ms` after the attempt began."""

    phase: Phase
    sent: str
    reply: str
    at_ms: float


class AttemptView(msgspec.Struct, frozen=True):
    """One attempt; the one under way has no end, outcome or steps yet."""

    number: int
    status: AttemptStatus
    next_hop: str
    replica_id: UUID
    started_at: datetime
    finished_at: datetime | None = None
    certainty: str | None = None
    phase: str | None = None
    severity: str | None = None
    scope: str | None = None
    rule: str | None = None
    code: int | None = None
    enhanced: str | None = None
    reply: str | None = None
    recipients: tuple[RecipientOutcome, ...] = ()
    steps: tuple[StepView, ...] = ()


class ReplicaView(msgspec.Struct, frozen=True):
    """One replica; `state` is `live`, `stopped` (left in order) or `lost` (fell silent, its mail was taken over).

    `hops_out` are the next hops that are out for it, so that their mail is parked: why, and since when.
    """

    replica_id: UUID
    state: str
    host: str
    pid: int
    version: str
    in_flight: int
    started_at: datetime
    last_seen_at: datetime
    silent_s: float
    hops_out: dict[str, HopOut]


class RouteFacts(msgspec.Struct, frozen=True):
    """The next hop, and for how many of the live replicas it is out; `since` and `cause` are of the first that noticed."""

    next_hop: str
    live_replicas: int
    out_for: int = 0
    since: datetime | None = None
    cause: str | None = None


class DeliveryPage(msgspec.Struct, frozen=True):
    """Deliveries, newest first. A page may be short, even empty: the end is where `cursor` is None."""

    deliveries: tuple[DeliveryView, ...]
    cursor: UUID | None


class DeliveryQuery(msgspec.Struct, frozen=True):
    """What to list, in the words of a caller; `status` may hold `waiting`, `recipient` is an address."""

    status: tuple[str, ...] = ()
    source: str | None = None
    delivery_class: str | None = None
    template: str | None = None
    recipient: str | None = None
    rule: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class OperatorQueue:
    """What operators may ask of the queue. Verbs raise `CommandError` for a bad filter and `StoreUnavailableError`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reads = QueueReads(store)

    async def page(self, query: DeliveryQuery, limit: int, cursor: UUID | None = None) -> DeliveryPage:
        """Return up to `limit` (at most `MAX_PAGE`) deliveries older than `cursor`; stable while new mail arrives."""
        page = await self._reads.page(self._filter(query), limit, cursor)
        return DeliveryPage(tuple(map(_delivery_view, page.deliveries)), page.after)

    async def delivery(self, delivery_id: UUID) -> DeliveryView | None:
        """Return one delivery, None if there is none with this id."""
        stored = await self._reads.delivery(delivery_id)
        return None if stored is None else _delivery_view(stored)

    async def attempts(self, delivery_id: UUID) -> tuple[AttemptView, ...] | None:
        """Return a delivery's attempts in order, the one under way last; None if there is no such delivery."""
        stored = await self._reads.delivery(delivery_id)
        if stored is None:
            return None
        recorded = tuple(map(attempt_view, await self._reads.attempts(delivery_id)))
        last = recorded[-1].number if recorded else 0
        # The attempts were read after the delivery: the one that was under way may be recorded by now.
        if stored.status is DeliveryStatus.SENDING and stored.attempts == last:
            recorded += (_attempt_under_way(stored),)
        return recorded

    async def changes(self, delivery_id: UUID) -> tuple[StoredChange, ...]:
        """Return the last changes by hand of a delivery, the newest first: who, when, why."""
        return await self._reads.changes(delivery_id)

    async def queue(
        self,
        limit: int,
        *,
        status: tuple[str, ...] = (),
        delivery_class: str | None = None,
        next_hop: str | None = None,
        domain: str | None = None,
        rule: str | None = None,
        recipient: str | None = None,
    ) -> tuple[DeliveryView, ...]:
        """Return up to `limit` deliveries that are waiting, sending or held, the one due longest first.

        Those of one `recipient` come newest first.
        """
        statuses = _statuses(status)
        if not statuses <= LIVE:
            raise CommandError(
                FailureCode.INVALID_FIELD,
                "status",
                "must be one of: waiting, queued, rendered, sending, held",
            )
        if recipient is not None:
            query = DeliveryQuery(tuple(statuses or LIVE), None, delivery_class, None, recipient, rule)
            page = await self._reads.page(self._filter(query), limit)
            return tuple(map(_delivery_view, page.deliveries))
        wanted = QueueFilter(
            statuses,
            member_of(DeliveryClass, delivery_class, "class"),
            next_hop,
            check_domain(domain),
            rule,
        )
        return tuple(map(_delivery_view, await self._reads.queue(wanted, limit)))

    async def replicas(self) -> tuple[ReplicaView, ...]:
        """Return the replicas that are known, the newest first."""
        return tuple(map(replica_view, await self._reads.replicas()))

    async def shape(self, by: ShapeBy, limit: int) -> Shape:
        """Return the live deliveries by age and `by`, the `limit` fullest rows."""
        return await self._reads.shape(by, limit)

    async def flush(
        self,
        *,
        delivery_id: UUID | None = None,
        domain: str | None = None,
        next_hop: str | None = None,
        force: bool = False,
        why: Why = FLUSHED,
    ) -> int:
        """Make waiting deliveries due now and wake every replica; answers how many. `why` is recorded with each.

        One delivery, those of a recipient domain or of a next hop; all of them if none is named. Scheduled mail keeps its
        time unless it is named by its id. Mail of a next hop that is out stays parked; with `force` it is probed at once.
        """
        check_why(why)
        by = msgspec.structs.asdict(why)
        if delivery_id is not None:
            count = await self._reads.flush_one(delivery_id, **by)
        else:
            count = await self._reads.flush(next_hop=next_hop, domain=check_domain(domain), **by)
        if force:
            await self._store.notify_probe()
        elif count:
            await self._store.notify_due()
        return count

    def _filter(self, query: DeliveryQuery) -> DeliveryFilter:
        return DeliveryFilter(
            statuses=_statuses(query.status),
            source=member_of(Source, query.source, "source"),
            delivery_class=member_of(DeliveryClass, query.delivery_class, "class"),
            template_id=query.template,
            rule=query.rule,
            recipient_hash=self._recipient_hash(query.recipient),
            since=query.since,
            until=query.until,
        )

    def _recipient_hash(self, recipient: str | None) -> bytes | None:
        if recipient is None:
            return None
        try:
            mailbox = parse_mailbox(recipient)
        except AddressError as fault:
            raise CommandError(FailureCode.INVALID_ADDRESS, "recipient", str(fault)) from None
        return address_hash(mailbox.address, self._store.hash_key)


def _delivery_view(stored: StoredDelivery) -> DeliveryView:
    return DeliveryView(
        delivery_id=stored.id,
        status=stored.status,
        delivery_class=stored.delivery_class,
        source=stored.source,
        guarantee=stored.guarantee,
        next_hop=stored.next_hop,
        domain=stored.recipient_domain,
        recipients=tuple(_recipient_views(stored)),
        size_bytes=stored.size_bytes,
        attempts=stored.attempts,
        takeovers=stored.takeovers,
        accepted_at=stored.accepted_at,
        due_at=stored.due_at,
        expires_at=stored.expires_at,
        finished_at=stored.finished_at,
        claimed_by=stored.claimed_by,
        template_id=stored.template_id,
        catalog_version=stored.catalog_version,
        locale=stored.locale,
        reason=stored.last_reason,
        rule=stored.last_rule,
        parent_id=stored.parent_id,
        dead_letter=stored.burial,
    )


def _recipient_views(stored: StoredDelivery) -> Iterable[RecipientView]:
    for ordinal, letter in enumerate(stored.recipient_states):
        address = mask_address(stored.recipients[ordinal]) if stored.recipients else None
        reason = stored.suppressed_because[ordinal] if stored.suppressed_because else None
        yield RecipientView(address, _STATE_WORDS[RecipientState(letter)], reason)


def attempt_view(stored: StoredAttempt) -> AttemptView:
    """Return a recorded attempt as operators see it."""
    fields = msgspec.structs.asdict(stored)
    fields["steps"] = tuple(StepView(**msgspec.structs.asdict(step)) for step in stored.steps)
    return AttemptView(**fields)


def _attempt_under_way(stored: StoredDelivery) -> AttemptView:
    assert stored.claimed_by is not None
    assert stored.claimed_at is not None
    return AttemptView(
        number=stored.attempts + 1,
        status=AttemptStatus.IN_PROGRESS,
        next_hop=stored.next_hop,
        replica_id=stored.claimed_by,
        started_at=stored.claimed_at,
    )


def replica_view(stored: StoredReplica) -> ReplicaView:
    """Return a replica as operators see it."""
    state = "lost" if stored.lost_at else "stopped" if stored.stopped_at else "live"
    return ReplicaView(
        replica_id=stored.id,
        state=state,
        host=stored.host,
        pid=stored.pid,
        version=stored.version,
        in_flight=stored.in_flight,
        started_at=stored.started_at,
        last_seen_at=stored.last_seen_at,
        silent_s=stored.silent_s,
        hops_out=stored.hops_out,
    )


def route_facts(next_hop: str, replicas: Iterable[ReplicaView]) -> RouteFacts:
    """Return how `next_hop` fares for those of `replicas` that are live."""
    live = [replica for replica in replicas if replica.state == "live"]
    out = [replica.hops_out[next_hop] for replica in live if next_hop in replica.hops_out]
    if not out:
        return RouteFacts(next_hop, len(live))
    first = min(out, key=lambda one: one.since)
    return RouteFacts(next_hop, len(live), len(out), first.since, first.cause)


def _statuses(words: Iterable[str]) -> frozenset[DeliveryStatus]:
    statuses: set[DeliveryStatus] = set()
    for word in words:
        status = None if word == WAITING_WORD else member_of(DeliveryStatus, word, "status")
        statuses |= {status} if status else WAITING
    return frozenset(statuses)


def member_of(kind: type[E], word: str | None, field: str) -> E | None:
    """Return the member of `kind` that a caller named, None for none. Raises `CommandError` about `field`."""
    if word is None:
        return None
    try:
        return kind(word)
    except ValueError:
        known = ", ".join(kind)
        raise CommandError(FailureCode.INVALID_FIELD, field, f"must be one of: {known}") from None


def check_domain(domain: str | None) -> str | None:
    """Return `domain` as it is stored: a lower-case A-label."""
    if domain is None:
        return None
    try:
        return parse_mailbox(f"postmaster@{domain}").domain
    except AddressError:
        raise CommandError(FailureCode.INVALID_FIELD, "domain", "is not a domain") from None
