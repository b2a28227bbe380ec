"""Changes by hand, over HTTP and on the command line alike: hold, release, cancel, confirm, resend.

Each names who did it and why, and is recorded with the change. What can't be done is told with where the delivery stands.
"""

from typing import Final
from uuid import UUID

import msgspec

from mailkeep.core.delivery import DeliveryStatus, Guarantee
from mailkeep.store.changes import OperatorChanges, Verb
from mailkeep.store.postgres import Store
from mailkeep.store.reads import QueueReads, StoredDelivery

MAX_ACTOR_CHARS: Final = 200
MAX_REASON_CHARS: Final = 500

_ONLY_FROM: Final = {
    Verb.HOLD: "only what waits can be held",
    Verb.RELEASE: "only what is held can be released",
    Verb.CANCEL: "only what waits or is held can be cancelled",
    Verb.CONFIRM: "only what is held can be confirmed",
}


class NoSuchDeliveryError(LookupError):
    """No delivery has this id."""


class WrongStatusError(Exception):
    """The delivery stands where the change does not apply; the message says where, and what else can be done."""


class Changed(msgspec.Struct, frozen=True):
    """What a change left: the delivery, and its status now."""

    delivery_id: UUID
    status: DeliveryStatus


class OperatorVerbs:
    """Verbs raise `NoSuchDeliveryError`, `WrongStatusError` and `StoreUnavailableError`.

    `actor` has 1 to `MAX_ACTOR_CHARS` characters, `reason` 1 to `MAX_REASON_CHARS`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changes = OperatorChanges(store)
        self._reads = QueueReads(store)

    async def change(self, verb: Verb, delivery_id: UUID, *, actor: str, reason: str) -> Changed:
        """Hold, release, cancel or confirm one delivery."""
        status = await self._changes.change(verb, delivery_id, actor=actor, reason=reason)
        if status is None:
            raise WrongStatusError(_why_not(verb, await self._delivery(delivery_id)))
        if verb is Verb.RELEASE:
            await self._store.notify_due()
        return Changed(delivery_id, status)

    async def resend(self, parent_id: UUID, *, key: str | None, actor: str, reason: str) -> Changed:
        """Make a new delivery of the content of one that has ended or is held; the same `key` makes no second one.

        It is addressed to those who did not get the mail, or to all if all did. A held parent is cancelled.
        """
        parent = await self._delivery(parent_id)
        made = await self._changes.resend(parent_id, parent.recipients, key=key, actor=actor, reason=reason)
        if made is None:
            raise WrongStatusError(_why_no_resend(await self._delivery(parent_id), key))
        await self._store.notify_due()
        return Changed(made, DeliveryStatus.RENDERED)

    async def _delivery(self, delivery_id: UUID) -> StoredDelivery:
        delivery = await self._reads.delivery(delivery_id)
        if delivery is None:
            raise NoSuchDeliveryError(f"no delivery has the id {delivery_id}")
        return delivery


def _why_not(verb: Verb, delivery: StoredDelivery) -> str:
    if verb is Verb.RELEASE and delivery.status is DeliveryStatus.HELD:
        assert delivery.guarantee == Guarantee.AT_MOST_ONCE
        return (
            f"{delivery.id} may have been delivered, and at_most_once forbids a second copy; "
            "confirm it, cancel it, or resend it if a second copy is the lesser evil"
        )
    return f"{delivery.id} is {delivery.status}; {_ONLY_FROM[verb]}"


def _why_no_resend(parent: StoredDelivery, key: str | None) -> str:
    if parent.status in (DeliveryStatus.QUEUED, DeliveryStatus.RENDERED, DeliveryStatus.SENDING):
        return f"{parent.id} is {parent.status}, so that it is sent anyway; flush it to send it now"
    if not parent.recipients:
        return f"the content of {parent.id} is erased; the program that sent it must send it anew"
    return f"the key {key!r} belongs to another resend"
