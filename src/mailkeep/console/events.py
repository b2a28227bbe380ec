"""The page of events: what became of deliveries, in the order in which programs and webhooks are told it.

The last ones, which follow what happens; or those after a cursor, from which the page goes on to newer ones.
"""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mailkeep.console.desk import PAGE_ROWS, Desk, asked, query_of
from mailkeep.core.command import CommandError
from mailkeep.core.event import BEGINNING, EVENT_TYPES
from mailkeep.operator.events import EventPage

_NO_PAGE: Final = EventPage((), "")


class EventPages:
    """The page of events, and the part of it that follows them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @property
    def routes(self) -> list[BaseRoute]:
        """What they answer."""
        return [Route("/events", self.list_events), Route("/events/live", self.live)]

    async def list_events(self, request: Request) -> Response:
        """List events, the newest of the page first."""
        return await self._show(request, "events")

    async def live(self, request: Request) -> Response:
        """Return the part of it that changes."""
        return await self._show(request, "_events")

    async def _show(self, request: Request, name: str) -> Response:
        fault, found = None, _NO_PAGE
        begin, kind = asked(request, "after"), asked(request, "type")
        try:
            cursor = begin or await self._desk.events.before_last(PAGE_ROWS)
            found = await self._desk.events.page(PAGE_ROWS, cursor, (kind,) if kind else ())
        except CommandError as refused:
            fault = f"{refused.field}: {refused.message}"
        return self._desk.page(
            request,
            name,
            status=400 if fault else 200,
            events=found.events[::-1],
            cursor=found.after,
            newer=query_of({"type": kind, "after": found.after}),
            newest=query_of({"type": kind}),
            oldest=query_of({"type": kind, "after": BEGINNING}),
            follows=begin is None,
            most=PAGE_ROWS,
            kind=kind or "",
            kinds=EVENT_TYPES,
            fault=fault,
        )
