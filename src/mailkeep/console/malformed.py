"""Pages about commands that could not be taken: listed, shown, repaired and taken again.

Fields that hold no content are shown; `mailkeep malformed show --raw` has the rest. A replay changes no delivery, so it asks
for no reason; who asked for it is logged.
"""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mailkeep.console.deliveries import POLLING_IS_OVER
from mailkeep.console.desk import PAGE_ROWS, Desk, after, asked, id_in, id_of_page, missing, query_of
from mailkeep.console.guard import FormError
from mailkeep.core.command import CommandError, FailureCode
from mailkeep.core.delivery import Source
from mailkeep.operator.malformed import MAX_PAGE, MalformedPage, MalformedView

PLAIN_FIELDS: Final = frozenset(
    {
        b"delivery_id",
        b"source",
        b"payload_mode",
        b"requested_at_ms",
        b"class",
        b"expires_at_ms",
        b"send_at_ms",
        b"traceparent",
    }
)
"""Fields of a command that hold neither content nor addresses."""
MAX_FIELDS: Final = 100
MAX_VALUE_CHARS: Final = 200
REPLAY_WAITS: Final = "replay_waits"
_NO_PAGE: Final = MalformedPage((), None)


class MalformedPages:
    """The pages about malformed commands."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @property
    def routes(self) -> list[BaseRoute]:
        """What they answer."""
        return [
            Route("/malformed", self.list_malformed),
            Route("/malformed/replay", self.replay_all, methods=["POST"]),
            Route("/malformed/{id}", self.show_malformed),
            Route("/malformed/{id}/live", self.live),
            Route("/malformed/{id}/replay", self.replay, methods=["POST"]),
        ]

    async def list_malformed(self, request: Request) -> Response:
        """List commands that could not be taken."""
        fault, found = None, _NO_PAGE
        code, source = asked(request, "code"), asked(request, "source")
        try:
            cursor = id_of_page(asked(request, "cursor"))
            found = await self._desk.malformed.page(PAGE_ROWS, cursor, code=code, source=source)
        except CommandError as refused:
            fault = f"{refused.field}: {refused.message}"
        filters = {"code": code, "source": source}
        return self._desk.page(
            request,
            "malformed",
            status=400 if fault else 200,
            records=found.malformed_commands,
            older=query_of({**filters, "cursor": found.cursor}) if found.cursor else None,
            newest=query_of(filters) if asked(request, "cursor") else None,
            code=code or "",
            source=source or "",
            codes=list(FailureCode),
            sources=list(Source),
            most=MAX_PAGE,
            fault=fault,
        )

    async def show_malformed(self, request: Request) -> Response:
        """Show one of them."""
        record = await self._record(request)
        raw = await self._desk.malformed.raw_fields(record.id)
        fields = [
            {
                "name": name.decode("utf-8", "backslashreplace")[:MAX_VALUE_CHARS],
                "value": value.decode("utf-8", "backslashreplace")[:MAX_VALUE_CHARS]
                if name in PLAIN_FIELDS
                else None,
                "size_bytes": len(value),
            }
            for name, value in sorted(raw.items())[:MAX_FIELDS]
        ]
        # What is wrong may be within a field, and a field may be what is missing.
        repairs = f"{record.field}=" if record.field and "." not in record.field else ""
        return self._desk.page(
            request,
            "malformed_one",
            record=record,
            can_be_replayed=record.can_be_replayed,
            fields=fields,
            repairs=repairs,
        )

    async def live(self, request: Request) -> Response:
        """Return the part of it that changes while a replay waits."""
        record = await self._record(request)
        status = 200 if record.state == REPLAY_WAITS else POLLING_IS_OVER
        return self._desk.page(request, "_malformed", status=status, record=record)

    async def replay(self, request: Request) -> Response:
        """Have one taken again, with its fields repaired."""
        form = await self._desk.changes(request)
        record = await self._record(request)
        repairs = repairs_of(form.one("repairs"))
        if not record.can_be_replayed or not await self._desk.malformed.ask_replay(record.id, repairs):
            raise FormError("it is replayed already, waits for that, or was not kept whole")
        self._desk.log.info("replay asked by hand", actor=form.actor, count=1)
        return after(f"/malformed/{record.id}", "replay")

    async def replay_all(self, request: Request) -> Response:
        """Have the newest of one failure taken again as they are, for their cause is mended here."""
        form = await self._desk.changes(request)
        desk, code = self._desk, form.one("code")
        page = await desk.malformed.page(MAX_PAGE, code=code, source=form.one("source") or None)
        count = sum(
            [
                await desk.malformed.ask_replay(record.id, {})
                for record in page.malformed_commands
                if record.can_be_replayed
            ]
        )
        desk.log.info("replay asked by hand", actor=form.actor, count=count)
        return after("/malformed", "replays" if count else "no replays")

    async def _record(self, request: Request) -> MalformedView:
        record = await self._desk.malformed.get(id_in(request, "malformed command"))
        if record is None:
            raise missing("malformed command")
        return record


def repairs_of(text: str) -> dict[str, str | None]:
    """Return what `field=value` lines ask for; without a value a field is left out. Raises `FormError`."""
    repairs: dict[str, str | None] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, equals, value = line.partition("=")
        if not name or not equals or not line.isprintable():
            raise FormError("a repair is field=value, one a line; without a value the field is left out")
        repairs[name.strip()] = value.strip() or None
    return repairs
