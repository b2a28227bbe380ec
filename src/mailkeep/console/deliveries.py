"""Pages about deliveries: the list with its filters, one with its attempts, its content, dead letters; and their changes.

Addresses are masked as everywhere; the content shows them, as it shows everything, and that of login codes and other
sensitive mail is never shown.
"""

from datetime import UTC, datetime
from typing import Final
from uuid import UUID, uuid4

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from mailkeep.console.desk import PAGE_ROWS, Desk, Form, after, asked, id_in, id_of_page, missing, query_of
from mailkeep.console.guard import MAIL_HEADERS, PAGE_HEADERS
from mailkeep.console.preview import MAX_MESSAGE_BYTES, Preview, look_at
from mailkeep.core.command import CommandError, FailureCode
from mailkeep.core.delivery import TERMINAL, WAITING, DeliveryClass, DeliveryStatus, Guarantee, Source
from mailkeep.operator.changes import KeyTakenError, NoSuchDeliveryError, WrongStatusError
from mailkeep.operator.queue import WAITING_WORD, DeliveryPage, DeliveryQuery, DeliveryView
from mailkeep.operator.redrive import USUAL_RATE_PER_S, RedriveRequest, redrive_key
from mailkeep.store.changes import Verb
from mailkeep.store.reads import StoredContent

POLLING_IS_OVER: Final = 286
"""What tells htmx that a part will not change any more."""
MAX_REDRIVEN: Final = 200
"""Dead letters of one form: a few seconds of work."""
VIEWS: Final = ("html", "text", "source")
_NO_PAGE: Final = DeliveryPage((), None)


class DeliveryPages:
    """The pages about deliveries."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @property
    def routes(self) -> list[BaseRoute]:
        """What they answer."""
        one = "/deliveries/{id}"
        return [
            Route("/deliveries", self.list_deliveries),
            Route("/dead-letters", self.list_dead_letters),
            Route("/dead-letters/redrive", self.redrive, methods=["POST"]),
            Route("/dead-letters/redrive-all", self.redrive_all, methods=["POST"]),
            Route(one, self.show),
            Route(f"{one}/live", self.live),
            Route(f"{one}/message", self.message),
            Route(f"{one}/message/html", self.html),
            Route(f"{one}/flush", self.flush, methods=["POST"]),
            Route(f"{one}/resend", self.resend, methods=["POST"]),
            Route(f"{one}/{{verb}}", self.change, methods=["POST"]),
        ]

    # -- lists -------------------------------------------------------------------------------------------------

    async def list_deliveries(self, request: Request) -> Response:
        """List deliveries by filters; a search for an id leads to that delivery."""
        sought = asked(request, "q")
        if sought is not None and (found := _as_id(sought)) is not None:
            return RedirectResponse(f"/deliveries/{found}", 303, dict(PAGE_HEADERS))
        return await self._list(request, "deliveries")

    async def list_dead_letters(self, request: Request) -> Response:
        """List dead letters, to be sent again."""
        return await self._list(request, "dead_letters", status=DeliveryStatus.DEAD_LETTER)

    async def _list(self, request: Request, name: str, status: str | None = None) -> Response:
        fault, found = None, _NO_PAGE
        try:
            query = _query(request, status)
            found = await self._desk.queue.page(query, PAGE_ROWS, id_of_page(asked(request, "cursor")))
        except CommandError as refused:
            fault = f"{refused.field}: {refused.message}"
        filters = {key: value for key, value in request.query_params.items() if key in _FILTERS and value}
        next_page: dict[str, object] = {**filters, "cursor": found.cursor}
        return self._desk.page(
            request,
            name,
            status=400 if fault else 200,
            deliveries=found.deliveries,
            older=query_of(next_page) if found.cursor else None,
            newest=query_of(filters) if asked(request, "cursor") else None,
            filters={key: filters.get(key, "") for key in _FILTERS},
            is_filtered=bool(filters.keys() - {"q"}),
            can_redrive_all=filters.keys() <= _REDRIVE_FILTERS,
            most=MAX_REDRIVEN,
            rate_per_s=USUAL_RATE_PER_S,
            statuses=[WAITING_WORD, *DeliveryStatus],
            sources=list(Source),
            classes=list(DeliveryClass),
            templates=sorted(self._desk.catalog.templates),
            fault=fault,
            nonce=uuid4().hex,
        )

    async def redrive(self, request: Request) -> Response:
        """Send chosen dead letters again, each as a new delivery; tells what became of each.

        One that was sent again before, by a redrive or from here, is not sent twice.
        """
        form = await self._desk.changes(request)
        why = form.why
        chosen = [found for found in map(_as_id, form.many("id")[:MAX_REDRIVEN]) if found]
        results: list[dict[str, object]] = []
        for delivery_id in dict.fromkeys(chosen):
            try:
                made, replayed = await self._desk.verbs.resend(delivery_id, why, key=redrive_key(delivery_id))
                before = "sent again before" if replayed else None
                results.append({"id": delivery_id, "made": made.delivery_id, "fault": before})
            except (NoSuchDeliveryError, WrongStatusError, KeyTakenError) as refused:
                results.append({"id": delivery_id, "made": None, "fault": f"it {refused}"})
        return self._desk.page(request, "redriven", results=results, reason=why.reason)

    async def redrive_all(self, request: Request) -> Response:
        """Send dead letters that fit the filters again, the oldest first, at a gentle rate; tells what it came to."""
        form = await self._desk.changes(request)
        wanted = RedriveRequest(
            reason=form.why.reason,
            actor=form.actor,
            delivery_class=form.one("class") or None,
            source=form.one("source") or None,
            rule=form.one("rule") or None,
            limit=MAX_REDRIVEN,
        )
        return self._desk.page(
            request, "redriven_all", answer=await self._desk.redrive.redrive(wanted), reason=wanted.reason
        )

    # -- one delivery ------------------------------------------------------------------------------------------

    async def show(self, request: Request) -> Response:
        """Show one delivery: where it stands and why, its attempts, what may be done."""
        return await self._show(request, "delivery")

    async def live(self, request: Request) -> Response:
        """Return the part of it that changes, as long as it may."""
        return await self._show(request, "_delivery")

    async def _show(self, request: Request, name: str) -> Response:
        delivery_id = id_in(request, "delivery")
        desk = self._desk
        delivery = await desk.queue.delivery(delivery_id)
        explanation = await desk.explain.explain(delivery_id)
        attempts = await desk.queue.attempts(delivery_id)
        if delivery is None or explanation is None or attempts is None:
            raise missing("delivery")
        is_over = delivery.status in TERMINAL
        return desk.page(
            request,
            name,
            status=POLLING_IS_OVER if is_over and name.startswith("_") else 200,
            delivery=delivery,
            explanation=explanation,
            attempts=attempts,
            is_over=is_over,
            actions=_actions(delivery),
            nonce=uuid4().hex,
        )

    async def change(self, request: Request) -> Response:
        """Hold, release, cancel or confirm one delivery, or erase its content."""
        form = await self._desk.changes(request)
        delivery_id = id_in(request, "delivery")
        try:
            verb = Verb(request.path_params["verb"])
        except ValueError:
            raise missing("change") from None
        await self._desk.verbs.change(verb, delivery_id, form.why)
        return after(f"/deliveries/{delivery_id}", verb)

    async def flush(self, request: Request) -> Response:
        """Make one delivery due now."""
        form, delivery_id = await self._asked_change(request)
        await self._desk.queue.flush(delivery_id=delivery_id, why=form.why)
        return after(f"/deliveries/{delivery_id}", "flush")

    async def resend(self, request: Request) -> Response:
        """Make a new delivery of the content of this one, and show it."""
        form, delivery_id = await self._asked_change(request)
        made, _ = await self._desk.verbs.resend(delivery_id, form.why, key=form.key(delivery_id.hex))
        return after(f"/deliveries/{made.delivery_id}", "resend")

    async def _asked_change(self, request: Request) -> tuple[Form, UUID]:
        form = await self._desk.changes(request)
        return form, id_in(request, "delivery")

    # -- its content -------------------------------------------------------------------------------------------

    async def message(self, request: Request) -> Response:
        """Show the message: HTML in a frame of its own, text, or source."""
        delivery_id = id_in(request, "delivery")
        content = await self._content(delivery_id)
        shown = await look_at(content.message) if content.message is not None else None
        return self._desk.page(
            request,
            "message",
            delivery_id=delivery_id,
            preview=shown,
            why_not=None if shown else _why_not_shown(content),
            view=view_of(shown, asked(request, "view")),
        )

    async def html(self, request: Request) -> Response:
        """Return the HTML alone, for its frame."""
        content = await self._content(id_in(request, "delivery"))
        shown = await look_at(content.message) if content.message is not None else None
        if shown is None or shown.html is None:
            raise missing("HTML part")
        return mail_html(shown.html)

    async def _content(self, delivery_id: UUID) -> StoredContent:
        content = await self._desk.reads.content(delivery_id, MAX_MESSAGE_BYTES)
        if content is None:
            raise missing("delivery")
        return content


def mail_html(html: str) -> Response:
    """Return HTML of a mail under the headers that keep it harmless."""
    return Response(html, headers=dict(MAIL_HEADERS), media_type="text/html; charset=utf-8")


def view_of(shown: Preview | None, wanted: str | None) -> str:
    """Return the way to look that is asked for, where there is one; else the best there is."""
    if wanted in VIEWS and (wanted != "html" or (shown and shown.html is not None)):
        return wanted
    return "html" if shown and shown.html is not None else "text"


def _why_not_shown(content: StoredContent) -> str:
    if content.withheld:
        return "The content of login codes and other sensitive mail is not shown."
    if not content.kept:
        return "The content is erased (MAIL_PAYLOAD_RETENTION)."
    if content.sealed:
        return "The content is sealed by a key that this process does not have (MAIL_PAYLOAD_KEYS_FILE)."
    if content.size_bytes is None:
        return "The message is not rendered yet."
    return "The message is too large to be shown here."


# -- filters ---------------------------------------------------------------------------------------------------------

_REDRIVE_FILTERS: Final = {"class", "source", "rule"}
_FILTERS: Final = ("q", "status", "source", "class", "template", "recipient", "rule", "since", "until")


def _query(request: Request, status: str | None) -> DeliveryQuery:
    """Return what the query parameters ask for. Raises `CommandError`."""
    recipient = asked(request, "recipient")
    if (sought := asked(request, "q")) is not None:
        if "@" not in sought:
            raise CommandError(
                FailureCode.INVALID_FIELD,
                "search",
                "takes the id of a delivery or a whole address; addresses are kept as hashes, so that parts of one find nothing",
            )
        recipient = sought
    chosen = status or asked(request, "status")
    return DeliveryQuery(
        status=(chosen,) if chosen else (),
        source=asked(request, "source"),
        delivery_class=asked(request, "class"),
        template=asked(request, "template"),
        recipient=recipient,
        rule=asked(request, "rule"),
        since=_instant(request, "since"),
        until=_instant(request, "until"),
    )


def _instant(request: Request, name: str) -> datetime | None:
    text = asked(request, name)
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(
            FailureCode.INVALID_FIELD, name, "must be an instant like 2026-11-22T14:30"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _as_id(text: str) -> UUID | None:
    try:
        return UUID(text.strip())
    except ValueError:
        return None


# -- what may be done ------------------------------------------------------------------------------------------------

_FLUSH: Final = ("flush", "Send now", "It is due at once, whatever its ladder says.")
_HOLD: Final = ("hold", "Hold", "Nothing is sent until somebody releases it.")
_RELEASE: Final = ("release", "Release", "It goes on where it stood.")
_CANCEL: Final = ("cancel", "Cancel sending", "It is never sent; this can't be undone.")
_CONFIRM: Final = ("confirm", "Confirm", "You know that it was delivered; it ends as sent.")
_RESEND: Final = (
    "resend",
    "Send again",
    "Makes a new delivery for those who did not get it, or for all if all did.",
)
_ERASE: Final = (
    Verb.DELETE.value,
    "Erase",
    "Erases its content and addresses; what happened stays on record. This can't be undone.",
)


def _actions(delivery: DeliveryView) -> tuple[tuple[str, str, str], ...]:
    """Return what applies where the delivery stands; the store has the last word."""
    if delivery.status in WAITING:
        return (_FLUSH, _HOLD, _CANCEL)
    if delivery.status is DeliveryStatus.HELD:
        may_be_out = delivery.guarantee == Guarantee.AT_MOST_ONCE
        return (_RELEASE, *([_CONFIRM] if may_be_out else []), _RESEND, _CANCEL)
    if delivery.status is DeliveryStatus.SENDING:
        return ()
    has_content = any(recipient.address for recipient in delivery.recipients)
    return (_RESEND, _ERASE) if has_content else ()
