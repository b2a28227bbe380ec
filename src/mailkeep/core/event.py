"""Events: what became of a delivery, as programs read it and as webhooks are told it; never an address or a text."""

import re
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from mailkeep.core.delivery import TERMINAL, DeliveryStatus

EVENT_STATUSES: Final = TERMINAL | {DeliveryStatus.HELD}
"""The statuses that are told of: those in which a delivery rests."""
TYPE_PREFIX: Final = "delivery."
EVENT_TYPES: Final = tuple(TYPE_PREFIX + status for status in DeliveryStatus if status in EVENT_STATUSES)
_MAX_NUMBER: Final = 2**63 - 1
_CURSOR: Final = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,16})")


class EventData(msgspec.Struct, frozen=True, rename={"delivery_class": "class"}):
    """The delivery as it was then. `attempts` had been made; `rule` is what the last failure matched.

    `cause` is why it became a dead letter; `parent_id` is the delivery that it was resent from. `idempotency_key` is the
    caller's own.
    """

    delivery_id: UUID
    status: DeliveryStatus
    source: str
    delivery_class: str
    attempts: int
    accepted_at: datetime
    idempotency_key: str | None
    parent_id: UUID | None
    template_id: str | None
    rule: str | None
    cause: str | None


class Event(msgspec.Struct, frozen=True):
    """One event. It has the same `event_id` wherever and however often it is told."""

    event_id: str
    type: str
    timestamp: datetime
    data: EventData


class Cursor(msgspec.Struct, frozen=True, order=True):
    """A place in the order of events: just after the event `event_id` of the transaction at `position`."""

    position: int
    event_id: int

    def __str__(self) -> str:
        return f"{self.position:x}-{self.event_id:x}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Return the cursor that `str` wrote. Raises ValueError."""
        found = _CURSOR.fullmatch(text)
        cursor = cls(*(int(number, 16) for number in found.groups())) if found else None
        if cursor is None or max(cursor.position, cursor.event_id) > _MAX_NUMBER:
            raise ValueError(
                "is no cursor; give what `after` was, or leave it out to begin with the oldest event"
            )
        return cursor


BEGINNING: Final = Cursor(0, 0)


def parse_types(types: "tuple[str, ...]") -> frozenset[DeliveryStatus]:
    """Return the statuses that event `types` are of; empty: all. Raises ValueError."""
    for name in types:
        if name not in EVENT_TYPES:
            raise ValueError(f"{name!r} is none of: {', '.join(EVENT_TYPES)}")
    return frozenset(DeliveryStatus(name.removeprefix(TYPE_PREFIX)) for name in types)
