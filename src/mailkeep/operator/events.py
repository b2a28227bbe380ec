"""Events as programs and operators read them: pages in order, each of which says where the next one begins."""

from typing import Final

import msgspec

from mailkeep.core.command import CommandError, FailureCode
from mailkeep.core.delivery import DeliveryStatus
from mailkeep.core.event import BEGINNING, Cursor, Event, parse_types
from mailkeep.store.events import Events
from mailkeep.store.postgres import Store

MAX_EVENTS: Final = 1000
"""Events of one page: an answer stays below a megabyte."""


class EventPage(msgspec.Struct, frozen=True):
    """Events in order. The next page begins at `after`: at once, or when there are more."""

    events: tuple[Event, ...]
    after: str


class OperatorEvents:
    """Reads raise `CommandError` and `StoreUnavailableError`."""

    def __init__(self, store: Store) -> None:
        self._events = Events(store)

    async def page(self, limit: int, after: str | None = None, types: tuple[str, ...] = ()) -> EventPage:
        """Return up to `limit` events after a cursor, by default from the oldest on; those of `types`, if given."""
        page = await self._events.page(_cursor(after), limit, _statuses(types))
        return EventPage(tuple(stored.event for stored in page.events), str(page.after))

    async def before_last(self, count: int) -> str:
        """Return the cursor after which the last `count` events come."""
        return str(await self._events.before_last(count))


def _cursor(text: str | None) -> Cursor:
    try:
        return BEGINNING if text is None else Cursor.parse(text)
    except ValueError as fault:
        raise CommandError(FailureCode.INVALID_FIELD, "after", str(fault)) from None


def _statuses(types: tuple[str, ...]) -> frozenset[DeliveryStatus]:
    try:
        return parse_types(types)
    except ValueError as fault:
        raise CommandError(FailureCode.INVALID_FIELD, "type", str(fault)) from None
