"""Changes by hand, over HTTP and on the command line alike: hold, release, cancel, confirm, delete, resend.

A flush is recorded alike; it is a verb of `operator.queue`, since it is about many.

Each names who did it and why, and is recorded with the change. What can't be done is told with where the delivery stands.
"""

from typing import Annotated, Final
from uuid import UUID

import msgspec

from mailkeep.core.command import check_line
from mailkeep.core.delivery import DeliveryStatus, Guarantee
from mailkeep.store.changes import OperatorChanges, Verb
from mailkeep.store.postgres import Store
from mailkeep.store.reads import QueueReads, StoredDelivery
from mailkeep.store.sealing import SealedError

MAX_ACTOR_CHARS: Final = 200
MAX_REASON_CHARS: Final = 500

_ONLY_FROM: Final = {
    Verb.HOLD: "only what waits can be held",
    Verb.RELEASE: "only what is held can be released",
    Verb.CANCEL: "only what waits or is held can be cancelled",
    Verb.CONFIRM: "only what is held can be confirmed",
    Verb.DELETE: "its replica is at it; delete it when that attempt is over",
}


class NoSuchDeliveryError(LookupError):
    """No delivery has this id."""


class KeyTakenError(Exception):
    """The idempotency key belongs to the resend of another delivery."""


class WrongStatusError(Exception):
    """The delivery stands where the change does not apply.

    The message says where, and what else can be done: a sentence that begins with its verb.
    """


class Why(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a delivery is changed by hand, and who does it; recorded with the change."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REASON_CHARS)]
    actor: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ACTOR_CHARS)] = "api"


class Changed(msgspec.Struct, frozen=True):
    """What a change left: the delivery, and its status now."""

    delivery_id: UUID
    status: DeliveryStatus


class OperatorVerbs:
    """Verbs raise `CommandError` (of `why`), `NoSuchDeliveryError`, `WrongStatusError` and `StoreUnavailableError`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changes = OperatorChanges(store)
        self._reads = QueueReads(store)

    async def change(self, verb: Verb, delivery_id: UUID, why: Why) -> Changed:
        """Hold, release, cancel, confirm or delete one delivery."""
        check_why(why)
        status = await self._changes.change(verb, delivery_id, actor=why.actor, reason=why.reason)
        if status is None:
            raise WrongStatusError(_why_not(verb, await self._delivery(delivery_id)))
        if verb is Verb.RELEASE:
            await self._store.notify_due()
        return Changed(delivery_id, status)

    async def resend(self, parent_id: UUID, why: Why, *, key: str | None) -> tuple[Changed, bool]:
        """Make a new delivery of the content of one that has ended or is held; the same `key` makes no second one.

        It is addressed to those who did not get the mail, or to all if all did. A held parent is cancelled. Answers the new
        delivery as it was at birth, and whether it was made by an earlier call. Raises `KeyTakenError`, too.
        """
        check_why(why)
        parent = await self._delivery(parent_id)
        try:
            made = await self._changes.resend(
                parent_id, parent.recipients, key=key, actor=why.actor, reason=why.reason
            )
        except SealedError as fault:
            raise WrongStatusError(f"has content that can't be opened here: {fault}") from fault
        if made is None:
            raise _why_no_resend(await self._delivery(parent_id))
        if not made.replayed:
            await self._store.notify_due()
        return Changed(made.delivery_id, DeliveryStatus.RENDERED), made.replayed

    async def _delivery(self, delivery_id: UUID) -> StoredDelivery:
        delivery = await self._reads.delivery(delivery_id)
        if delivery is None:
            raise NoSuchDeliveryError(f"no delivery has the id {delivery_id}")
        return delivery


def check_why(why: Why) -> None:
    """Raise `CommandError` unless who and why are each one printable line."""
    check_line(why.reason, "reason")
    check_line(why.actor, "actor")


def _why_not(verb: Verb, delivery: StoredDelivery) -> str:
    if verb is Verb.RELEASE and delivery.status is DeliveryStatus.HELD:
        assert delivery.guarantee == Guarantee.AT_MOST_ONCE
        return (
            "may have been delivered, and at_most_once forbids a second copy; "
            "confirm it, cancel it, or resend it if a second copy is the lesser evil"
        )
    return f"is {delivery.status}; {_ONLY_FROM[verb]}"


def _why_no_resend(parent: StoredDelivery) -> Exception:
    if parent.status in (DeliveryStatus.QUEUED, DeliveryStatus.RENDERED, DeliveryStatus.SENDING):
        return WrongStatusError(f"is {parent.status}, so that it is sent anyway; flush it to send it now")
    if not parent.recipients:
        return WrongStatusError("has no content any more; the program that sent it must send it anew")
    return KeyTakenError("the key belongs to the resend of another delivery")
