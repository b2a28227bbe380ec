"""Why a delivery stands where it stands, and what comes next: from the table alone, in words for whoever is asked at night.

Reads only; over HTTP and on the command line alike. Every sentence follows from facts that are answered beside it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from mailkeep.core.delivery import TERMINAL, WAITING, DeliveryClass, DeliveryStatus
from mailkeep.dispatch.breaker import HINTED_PROBE_S
from mailkeep.operator.queue import (
    AttemptView,
    ReplicaView,
    RouteFacts,
    attempt_view,
    replica_view,
    route_facts,
)
from mailkeep.store.postgres import Store
from mailkeep.store.reads import QueueReads, StoredAttempt, StoredChange, StoredDelivery

NEVER: Final = "nothing; it has ended"


class TemplateFacts(msgspec.Struct, frozen=True):
    """What the content was rendered from; `catalog_version` is the content hash of the whole catalog.

    `locale_chain` has the locales that were tried, from the one asked for to `locale`, the one that answered.
    """

    template_id: str
    catalog_version: str | None
    locale: str | None
    locale_chain: tuple[str, ...]


class Explanation(msgspec.Struct, frozen=True, rename={"delivery_class": "class"}):
    """Why a delivery is not sent yet, or how it ended (`why`), and what happens next and when.

    `next_at` is None where no instant is known; what is not sent by `expires_at` ends expired. `waits_used` of the `waits` of the class's ladder are behind it; waits for a
    next hop that is out use none.
    """

    delivery_id: UUID
    status: DeliveryStatus
    delivery_class: str
    why: str
    next: str
    next_at: datetime | None
    expires_at: datetime | None
    attempts: int
    waits_used: int
    waits: int
    route: RouteFacts
    last_attempt: AttemptView | None
    template: TemplateFacts | None
    changes: tuple[StoredChange, ...]


class _Verdict(NamedTuple):
    why: str
    next: str
    next_at: datetime | None = None


class OperatorExplain:
    """Explains deliveries; `ladders` are those of this configuration. Raises `StoreUnavailableError`."""

    def __init__(self, store: Store, ladders: Mapping[DeliveryClass, tuple[float, ...]]) -> None:
        self._reads = QueueReads(store)
        self._ladders = ladders

    async def explain(self, delivery_id: UUID) -> Explanation | None:
        """Return the explanation of one delivery, None if there is none with this id."""
        delivery = await self._reads.delivery(delivery_id)
        if delivery is None:
            return None
        attempts = await self._reads.attempts(delivery_id)
        changes = await self._reads.changes(delivery_id)
        replicas = [replica_view(replica) for replica in await self._reads.replicas()]
        route = route_facts(delivery.next_hop, replicas)
        last = attempts[-1] if attempts else None
        why, following, at = _judge(delivery, last, changes, route, replicas)
        return Explanation(
            delivery_id=delivery.id,
            status=delivery.status,
            delivery_class=delivery.delivery_class,
            why=why,
            next=following,
            next_at=at,
            expires_at=delivery.expires_at,
            attempts=delivery.attempts,
            waits_used=delivery.rungs_used,
            waits=len(self._ladders[DeliveryClass(delivery.delivery_class)]),
            route=route,
            last_attempt=None if last is None else attempt_view(last),
            template=_template(delivery),
            changes=changes,
        )


def _template(delivery: StoredDelivery) -> TemplateFacts | None:
    if delivery.template_id is None:
        return None
    chain = (delivery.locale_chain or delivery.locale or "").split()
    return TemplateFacts(delivery.template_id, delivery.catalog_version, delivery.locale, tuple(chain))


def _judge(
    delivery: StoredDelivery,
    last: StoredAttempt | None,
    changes: Sequence[StoredChange],
    route: RouteFacts,
    replicas: Sequence[ReplicaView],
) -> _Verdict:
    if delivery.status in TERMINAL:
        return _ended(delivery, changes)
    if delivery.status is DeliveryStatus.HELD:
        return _held(delivery, changes)
    if delivery.status is DeliveryStatus.SENDING:
        return _sending(delivery, replicas)
    assert delivery.status in WAITING
    return _waiting(delivery, last, route, replicas)


def _waiting(
    delivery: StoredDelivery,
    last: StoredAttempt | None,
    route: RouteFacts,
    replicas: Sequence[ReplicaView],
) -> _Verdict:
    assert delivery.due_at is not None
    if not route.live_replicas:
        return _Verdict("no replica runs", "it is claimed as soon as one starts: `mailkeep serve`")
    if route.out_for == route.live_replicas:
        return _Verdict(
            f"its next hop {route.next_hop} is out: {route.cause}; its mail is parked and uses no wait of the ladder",
            f"one delivery at a time probes the next hop, at most {HINTED_PROBE_S:g} s apart; when that succeeds, all go on",
        )
    now = max(replica.last_seen_at + timedelta(seconds=replica.silent_s) for replica in replicas)
    if delivery.due_at > now:
        return _Verdict(_why_it_waits(delivery, last), "its next attempt is due", delivery.due_at)
    return _Verdict(
        "it is due and waits for a free worker", f"any of {route.live_replicas} live replicas claims it"
    )


def _why_it_waits(delivery: StoredDelivery, last: StoredAttempt | None) -> str:
    if last is None:
        return "it is scheduled for later"
    words = delivery.last_reason or last.status
    if last.certainty == "unknown":
        return f"the outcome of attempt {last.number} is unknown: {words}"
    return f"attempt {last.number} did not deliver: {words}"


def _sending(delivery: StoredDelivery, replicas: Sequence[ReplicaView]) -> _Verdict:
    holder = next((replica for replica in replicas if replica.replica_id == delivery.claimed_by), None)
    if holder is None or holder.state != "live":
        return _Verdict(
            "the replica that was sending it is gone", "a live replica takes it over within seconds"
        )
    return _Verdict(
        f"process {holder.pid} on {holder.host} is sending it: attempt {delivery.attempts + 1}",
        "the next hop answers, or a timer of its phase runs out",
    )


def _held(delivery: StoredDelivery, changes: Sequence[StoredChange]) -> _Verdict:
    if delivery.dot_at is not None:
        return _Verdict(
            "it may have been delivered, and at_most_once forbids a second copy",
            "nothing by itself: ask the receiver, then confirm, resend or cancel it",
        )
    held = next((change for change in changes if change.status == delivery.status), None)
    by = f" by {held.actor}: {held.reason}" if held else ""
    return _Verdict(f"it is held{by}", "nothing by itself: release or cancel it")


def _ended(delivery: StoredDelivery, changes: Sequence[StoredChange]) -> _Verdict:
    reason = f": {delivery.last_reason}" if delivery.last_reason else ""
    again = "nothing by itself; `mailkeep queue resend` sends its content once more"
    match delivery.status:
        case DeliveryStatus.SENT:
            return _Verdict("every recipient was accepted by the next hop", NEVER)
        case DeliveryStatus.DEAD_LETTER:
            assert delivery.burial is not None
            return _Verdict(f"{delivery.burial.cause}: {delivery.burial.reason}", again)
        case DeliveryStatus.FAILED:
            return _Verdict(f"refused for good{reason}", again)
        case DeliveryStatus.EXPIRED:
            return _Verdict("its time ran out before it was sent", NEVER)
        case DeliveryStatus.CANCELLED:
            cancelled = next((change for change in changes if change.status == delivery.status), None)
            by = f" by {cancelled.actor}" if cancelled else ""
            return _Verdict(f"it was cancelled{by}{reason}", NEVER)
        case _:
            return _Verdict(f"it was suppressed{reason}", NEVER)
