"""The page about addresses that get no mail: found, added, let go. It is a list of addresses, so they stand here in clear.

What a person says of why is kept as the suppression's evidence, and recorded with who did it.
"""

from typing import Final
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mailkeep.console.desk import PAGE_ROWS, Desk, after, asked, id_in, id_of_page, missing, query_of
from mailkeep.console.guard import FormError
from mailkeep.core.command import CommandError
from mailkeep.core.duration import parse_duration
from mailkeep.core.suppression import NewSuppression, SuppressionReason
from mailkeep.operator.suppressions import SuppressionPage, parse_address, parse_reason
from mailkeep.store.suppressions import ERASED

SPANS: Final = ("7d", "30d", "90d", "365d")
"""How long an address may be suppressed from here, besides for ever."""
_NO_PAGE: Final = SuppressionPage((), None)


class SuppressionPages:
    """The page about suppressions, and its forms."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @property
    def routes(self) -> list[BaseRoute]:
        """What they answer."""
        return [
            Route("/suppressions", self.list_suppressions),
            Route("/suppressions/add", self.add, methods=["POST"]),
            Route("/suppressions/{id}/remove", self.remove, methods=["POST"]),
        ]

    async def list_suppressions(self, request: Request) -> Response:
        """List suppressions in force, the newest first."""
        fault, found = None, _NO_PAGE
        recipient, reason = asked(request, "recipient"), asked(request, "reason")
        try:
            cursor = id_of_page(asked(request, "cursor"))
            found = await self._desk.suppressions.page(PAGE_ROWS, cursor, recipient=recipient, reason=reason)
        except CommandError as refused:
            fault = f"{refused.field}: {refused.message}"
        filters = {"recipient": recipient, "reason": reason}
        return self._desk.page(
            request,
            "suppressions",
            status=400 if fault else 200,
            suppressions=found.suppressions,
            erased=ERASED,
            older=query_of({**filters, "cursor": found.cursor}) if found.cursor else None,
            newest=query_of(filters) if asked(request, "cursor") else None,
            recipient=recipient or "",
            reason_word=reason or "",
            reasons=list(SuppressionReason),
            spans=SPANS,
            fault=fault,
            nonce=uuid4().hex,
        )

    async def add(self, request: Request) -> Response:
        """Suppress one address."""
        form = await self._desk.changes(request)
        span = form.one("for")
        if span not in {"", *SPANS}:
            raise FormError("there is no such span")
        new = NewSuppression(
            parse_address(form.one("address"), "address"), parse_reason(form.one("kind")), form.why.reason
        )
        added = await self._desk.suppressions.add(
            [new], actor=form.actor, expires_in_s=parse_duration(span) if span else None
        )
        return after("/suppressions", "suppressed" if added else "suppressed already")

    async def remove(self, request: Request) -> Response:
        """Let one address get mail again."""
        form = await self._desk.changes(request)
        which = id_in(request, "suppression")
        if await self._desk.suppressions.remove(which, actor=form.actor, note=form.why.reason) is None:
            raise missing("suppression")
        return after("/suppressions", "unsuppressed")
