"""Pages about the sinkhole: what came in, how it was said, and which answers it gives. Only where `MAIL_SINKHOLE_URL` is set.

They ask the sinkhole's own HTTP API, in a thread, so that a slow one holds up nobody else; it may be another process. Changing
its mode changes no delivery, so it asks for no reason; who did it is logged.
"""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mailkeep.console.deliveries import mail_html, view_of
from mailkeep.console.desk import PAGE_ROWS, Desk, after, asked, missing
from mailkeep.console.guard import FormError
from mailkeep.console.preview import Preview, look_at
from mailkeep.sinkhole.client import SinkholeClient
from mailkeep.sinkhole.script import ModeName, UnknownModeError, parse_mode

USUAL_MODES: Final = (
    "accept",
    "defer",
    "defer-3x",
    "bounce",
    "greylist",
    "accept-then-drop",
    "stall",
    "slow",
)

T = TypeVar("T")


class InboxPages:
    """The pages about `sinkhole`."""

    def __init__(self, desk: Desk, sinkhole: SinkholeClient) -> None:
        self._desk = desk
        self._sinkhole = sinkhole

    @property
    def routes(self) -> list[BaseRoute]:
        """What they answer."""
        return [
            Route("/inbox", self.inbox),
            Route("/inbox/live", self.live),
            Route("/inbox/mode", self.put_mode, methods=["POST"]),
            Route("/inbox/empty", self.empty, methods=["POST"]),
            Route("/inbox/connections/{id}", self.connection),
            Route("/inbox/{id}", self.message),
            Route("/inbox/{id}/html", self.html),
        ]

    async def inbox(self, request: Request) -> Response:
        """Show what the sinkhole took, and its mode."""
        return await self._show(request, "inbox")

    async def live(self, request: Request) -> Response:
        """Return the part of it that changes."""
        return await self._show(request, "_inbox")

    async def _show(self, request: Request, name: str) -> Response:
        recipient = asked(request, "recipient")
        mode = await self._ask(lambda sinkhole: sinkhole.mode())
        inbox = await self._ask(lambda sinkhole: sinkhole.inbox(recipient=recipient, limit=PAGE_ROWS))
        return self._desk.page(
            request,
            name,
            mode=mode,
            inbox=inbox,
            recipient=recipient or "",
            usual_modes=USUAL_MODES,
            modes=list(ModeName),
        )

    async def put_mode(self, request: Request) -> Response:
        """Let the sinkhole answer in another mode."""
        form = await self._desk.changes(request)
        try:
            mode = str(parse_mode(form.one("mode")))
        except UnknownModeError as fault:
            raise FormError(f"the mode {fault}") from None
        await self._ask(lambda sinkhole: sinkhole.put_mode(mode))
        self._desk.log.info("sinkhole changed by hand", actor=form.actor, mode=mode)
        return after("/inbox", "mode")

    async def empty(self, request: Request) -> Response:
        """Forget every message."""
        form = await self._desk.changes(request)
        count = await self._ask(lambda sinkhole: sinkhole.forget())
        self._desk.log.info("sinkhole changed by hand", actor=form.actor, forgotten=count)
        return after("/inbox", "emptied")

    async def message(self, request: Request) -> Response:
        """Show one message that came in."""
        message_id = request.path_params["id"]
        answer = await self._ask(lambda sinkhole: sinkhole.message(message_id))
        shown = await self._preview(message_id)
        view = view_of(shown, asked(request, "view"))
        return self._desk.page(request, "inbox_message", line=answer.message, preview=shown, view=view)

    async def html(self, request: Request) -> Response:
        """Return its HTML alone, for its frame."""
        shown = await self._preview(request.path_params["id"])
        if shown.html is None:
            raise missing("HTML part")
        return mail_html(shown.html)

    async def connection(self, request: Request) -> Response:
        """Show what was said on one connection."""
        connection_id = request.path_params["id"]
        transcript = await self._ask(lambda sinkhole: sinkhole.transcript(connection_id))
        return self._desk.page(request, "transcript", transcript=transcript)

    async def _preview(self, message_id: str) -> Preview:
        return await look_at(await self._ask(lambda sinkhole: sinkhole.raw_message(message_id)))

    async def _ask(self, question: Callable[[SinkholeClient], T]) -> T:
        return await asyncio.to_thread(question, self._sinkhole)
