"""What the pages of the console work with: the operators' verbs, the settings, the visitor, and how a page is made.

Every change goes through `Desk.changes`, which lets nothing through that a page of this session did not ask for.
"""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from mailkeep.console.guard import PAGE_HEADERS, FormError, Guard, Session, read_form
from mailkeep.console.traffic import Traffic
from mailkeep.console.view import Pages
from mailkeep.core.command import CommandError, FailureCode
from mailkeep.operator.changes import MAX_REASON_CHARS, OperatorVerbs, Why
from mailkeep.operator.events import OperatorEvents
from mailkeep.operator.explain import OperatorExplain
from mailkeep.operator.malformed import OperatorMalformed
from mailkeep.operator.queue import OperatorQueue
from mailkeep.operator.redrive import OperatorRedrive
from mailkeep.operator.suppressions import OperatorSuppressions
from mailkeep.settings import Environment, Settings
from mailkeep.sinkhole.client import SinkholeClient
from mailkeep.store.postgres import Store
from mailkeep.store.reads import QueueReads
from mailkeep.templates.catalog import Catalog
from mailkeep.version import __version__

PAGE_ROWS: Final = 50
NAVIGATION: Final = (
    ("/", "Overview", "o"),
    ("/deliveries", "Deliveries", "d"),
    ("/dead-letters", "Dead letters", "l"),
    ("/malformed", "Malformed", "m"),
    ("/suppressions", "Suppressions", "s"),
    ("/events", "Events", "e"),
    ("/routes", "Routes", "r"),
    ("/replicas", "Replicas", "p"),
    ("/templates", "Templates", "t"),
    ("/doctor", "Doctor", "h"),
)
INBOX: Final = ("/inbox", "Inbox", "i")
SAID: Final = {
    "hold": "Held. Nothing is sent until somebody releases it.",
    "release": "Released. It goes on where it stood.",
    "cancel": "Cancelled. It is not sent any more.",
    "confirm": "Confirmed as delivered.",
    "resend": "This is the new delivery that was made.",
    "flush": "It is due now.",
    "flushed": "What waits there is due now.",
    "mode": "The sinkhole answers in its new mode.",
    "emptied": "The inbox is empty.",
    "delete": "Its content is erased.",
    "suppressed": "It gets no mail from now on.",
    "suppressed already": "It was suppressed for as long already, and stays as it was.",
    "unsuppressed": "It gets mail again.",
    "replay": "A running service takes it again, within a second.",
    "replays": "A running service takes them again, within seconds.",
    "no replays": "None of them can be replayed.",
}
"""What a page says after a change, by the word in its address: never text from outside."""


class Desk:
    """Everything a page needs. `sinkhole` is None where none is configured."""

    def __init__(self, store: Store, settings: Settings, catalog: Catalog) -> None:
        self.settings = settings
        self.catalog = catalog
        self.reads = QueueReads(store)
        self.queue = OperatorQueue(store)
        self.verbs = OperatorVerbs(store)
        self.redrive = OperatorRedrive(store)
        self.explain = OperatorExplain(store, settings.ladders)
        self.malformed = OperatorMalformed(store)
        self.suppressions = OperatorSuppressions(store)
        self.events = OperatorEvents(store)
        self.traffic = Traffic(self.reads)
        self.sinkhole = SinkholeClient(settings.sinkhole_url) if settings.sinkhole_url else None
        tokens = tuple(token.reveal() for token in settings.internal_http_tokens)
        self.guard = Guard(store.hash_key, tokens)
        self.log = structlog.get_logger("console")
        self._pages = Pages(
            {
                "version": __version__,
                "environment": settings.environment.value,
                "in_production": settings.environment is Environment.PRODUCTION,
                "navigation": [list(entry) for entry in ((INBOX,) if self.sinkhole else ()) + NAVIGATION],
                "asks_for_token": self.guard.asks_for_token,
                "max_reason_chars": MAX_REASON_CHARS,
            }
        )

    def page(self, request: Request, name: str, *, status: int = 200, **context: Any) -> Response:  # noqa: ANN401 - any value types
        """Return a page for the visitor of `request`."""
        session: Session = request.state.session
        return self._pages.render(
            name,
            {
                "section": _section(request.url.path),
                "csrf": self.guard.csrf(session),
                "visitor": session.name,
                "is_inside": self.guard.lets_in(session),
                "said": SAID.get(request.query_params.get("said", ""), ""),
            }
            | context,
            status=status,
        )

    async def changes(self, request: Request) -> "Form":
        """Return the form with which a change is asked for. Raises `FormError`."""
        form = await read_form(request)
        session: Session = request.state.session
        self.guard.check_form(request, session, form)
        return Form(form, session.actor)


class Form:
    """A form that a page of this session sent; `actor` is who is recorded."""

    def __init__(self, fields: dict[str, list[str]], actor: str) -> None:
        self._fields = fields
        self.actor = actor

    def one(self, name: str) -> str:
        """Return the first value of a field without spaces around it, empty if it is not there."""
        return self._fields.get(name, [""])[0].strip()

    def many(self, name: str) -> tuple[str, ...]:
        """Return all values of a field."""
        return tuple(self._fields.get(name, ()))

    @property
    def why(self) -> Why:
        """Who asks for the change, and why. Raises `FormError` without a reason."""
        try:
            return msgspec.convert({"reason": self.one("reason"), "actor": self.actor}, Why)
        except msgspec.ValidationError:
            raise FormError(f"say why, in 1 to {MAX_REASON_CHARS} characters; it is recorded") from None

    def key(self, purpose: str) -> str:
        """Return an idempotency key of this one form, so that sending it twice changes nothing twice."""
        return f"console-{self.one('nonce')[:64]}-{purpose}"


def _section(path: str) -> str:
    """Return the address of the page in the navigation that `path` belongs to."""
    return "/" + path[1:].partition("/")[0]


def after(path: str, said: str) -> Response:
    """Return to a page after a change (303, so that reloading it changes nothing)."""
    return RedirectResponse(f"{path}?{urlencode({'said': said})}", 303, dict(PAGE_HEADERS))


def id_in(request: Request, what: str) -> UUID:
    """Return the id in the path. Raises `HTTPException` 404 for what is none."""
    try:
        return UUID(request.path_params["id"])
    except ValueError:
        raise missing(what) from None


def missing(what: str) -> HTTPException:
    """Return the fault of a page about `what` that is not there."""
    return HTTPException(404, f"There is no {what} with this id, or it is gone.")


def asked(request: Request, name: str) -> str | None:
    """Return a query parameter; None where it is empty or not there."""
    return request.query_params.get(name, "").strip() or None


def query_of(parameters: Mapping[str, object]) -> str:
    """Return the query string of what is not None or empty."""
    return urlencode({name: str(value) for name, value in parameters.items() if value})


def id_of_page(text: str | None) -> UUID | None:
    """Return the cursor in a query parameter. Raises `CommandError`."""
    try:
        return None if text is None else UUID(text)
    except ValueError:
        raise CommandError(FailureCode.INVALID_FIELD, "cursor", "must be that of a page") from None
