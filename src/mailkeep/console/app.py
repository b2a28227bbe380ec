"""The console's application: checks each request, then lets a page answer it.

On loopback without tokens anybody on this machine may use it, as with the internal API; then the Host must be this machine's,
so that a page in a browser can't reach it by a name of its own (DNS rebinding). Where tokens are configured nothing but the
login page and its style is shown without one. Every answer carries the headers of `console.guard`; a fault is a page, too.
Never logs what a request holds. Called by the HTTP listener that `wiring` makes.
"""

import traceback
from importlib.resources import files
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mailkeep.console.catalog import CatalogPages
from mailkeep.console.deliveries import DeliveryPages
from mailkeep.console.desk import Desk
from mailkeep.console.doctor import DoctorPages
from mailkeep.console.events import EventPages
from mailkeep.console.guard import (
    MAX_NAME_CHARS,
    PAGE_HEADERS,
    STATIC_HEADERS,
    FormError,
    Session,
    read_form,
)
from mailkeep.console.inbox import InboxPages
from mailkeep.console.malformed import MalformedPages
from mailkeep.console.overview import OverviewPages
from mailkeep.console.suppressions import SuppressionPages
from mailkeep.console.traffic import Traffic
from mailkeep.core.command import CommandError, check_line
from mailkeep.core.host import is_local
from mailkeep.operator.changes import KeyTakenError, NoSuchDeliveryError, WrongStatusError
from mailkeep.settings import HttpAuth, Settings
from mailkeep.sinkhole.client import SinkholeAwayError
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.postgres import Store
from mailkeep.templates.catalog import Catalog

STATIC: Final = "/static/"
LOGIN: Final = "/login"
LOGOUT: Final = "/logout"
_KINDS: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_NO_SUCH_PAGE: Final = "There is no such page."


class Console:
    """The ASGI application. `traffic` must run beside it."""

    def __init__(self, store: Store, settings: Settings, catalog: Catalog) -> None:
        self._desk = desk = Desk(store, settings, catalog)
        self._static = _static_files()
        # Where everybody is let in from anywhere, by explicit order, any name may lead here.
        self._is_for_this_machine = (
            not desk.guard.asks_for_token and settings.internal_http_auth is not HttpAuth.NONE
        )
        pages = [
            OverviewPages(desk).routes,
            DeliveryPages(desk).routes,
            CatalogPages(desk).routes,
            MalformedPages(desk).routes,
            SuppressionPages(desk).routes,
            EventPages(desk).routes,
            DoctorPages(desk).routes,
        ]
        if desk.sinkhole is not None:
            pages.append(InboxPages(desk, desk.sinkhole).routes)
        self._app = Starlette(
            routes=[
                Route(LOGIN, self._login),
                Route(LOGIN, self._log_in, methods=["POST"]),
                Route(LOGOUT, self._log_out, methods=["POST"]),
                Route("/keys", self._keys),
                *(route for routes in pages for route in routes),
            ],
            exception_handlers={
                HTTPException: self._refuse,
                FormError: self._refuse,
                CommandError: self._refuse,
                NoSuchDeliveryError: self._refuse,
                WrongStatusError: self._refuse,
                KeyTakenError: self._refuse,
                StoreUnavailableError: self._refuse,
                SinkholeAwayError: self._refuse,
                Exception: self._refuse,
            },
        )
        self._app.router.redirect_slashes = False

    @property
    def traffic(self) -> Traffic:
        """What looks at throughput; `run` it while the console is open."""
        return self._desk.traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope)
        if scope["path"].startswith(STATIC):
            await self._static_file(scope["path"])(scope, receive, send)
            return
        guard = self._desk.guard
        session = guard.opened(request.cookies.get(guard.cookie, ""))
        is_new = session is None
        request.state.session = session = session or guard.begin()
        host = request.headers.get("host", "")
        if self._is_for_this_machine and not is_local(host):
            answer: ASGIApp = self._problem(
                request, 421, "The console answers under the names of this machine only."
            )
        elif not guard.lets_in(session) and scope["path"] != LOGIN:
            answer = _to_login(request)
        else:
            answer = self._app

        async def send_with_session(message: Message) -> None:
            if message["type"] == "http.response.start" and is_new and not _sets_cookie(message):
                message["headers"].append((b"set-cookie", guard.set_cookie(session, host).encode()))
            await send(message)

        try:
            await answer(scope, receive, send_with_session)
        except Exception as fault:  # noqa: BLE001 - a boundary: it has answered with a page, the next one is served
            place = traceback.extract_tb(fault.__traceback__)[-1]
            self._desk.log.error(  # noqa: TRY400 - the traceback could hold what the request held
                "page met a fault", fault=type(fault).__name__, at=f"{place.filename}:{place.lineno}"
            )

    # -- coming and going --------------------------------------------------------------------------------------

    async def _login(self, request: Request) -> Response:
        if self._desk.guard.lets_in(request.state.session):
            return RedirectResponse("/", 303, dict(PAGE_HEADERS))
        return self._desk.page(request, "login", fault=None)

    async def _log_in(self, request: Request) -> Response:
        desk = self._desk
        form = await read_form(request)
        desk.guard.check_form(request, request.state.session, form)
        name = form.get("name", [""])[0].strip()[:MAX_NAME_CHARS]
        session = desk.guard.log_in(form.get("token", [""])[0], _one_line(name))
        if session is None:
            desk.log.warning("login refused")
            return desk.page(
                request, "login", status=401, fault="This is none of the tokens of this service."
            )
        return self._with_session(request, session, "/")

    async def _log_out(self, request: Request) -> Response:
        await self._desk.changes(request)
        return self._with_session(request, None, LOGIN)

    def _with_session(self, request: Request, session: Session | None, path: str) -> Response:
        cookie = self._desk.guard.set_cookie(session, request.headers.get("host", ""))
        return RedirectResponse(path, 303, dict(PAGE_HEADERS) | {"set-cookie": cookie})

    async def _keys(self, request: Request) -> Response:
        return self._desk.page(request, "keys")

    # -- answers that are no page ------------------------------------------------------------------------------

    def _static_file(self, path: str) -> Response:
        name = path.removeprefix(STATIC)
        if name not in self._static:
            return Response(_NO_SUCH_PAGE, 404, dict(PAGE_HEADERS), "text/plain")
        content, kind = self._static[name]
        return Response(content, headers=dict(STATIC_HEADERS), media_type=kind)

    def _problem(self, request: Request, status: int, detail: str) -> Response:
        return self._desk.page(request, "problem", status=status, detail=detail, status_code=status)

    async def _refuse(self, request: Request, fault: Exception) -> Response:
        match fault:
            case HTTPException():
                known = fault.detail if fault.status_code == 404 and " " in fault.detail else _NO_SUCH_PAGE
                status, detail = fault.status_code, known if fault.status_code == 404 else fault.detail
            case FormError():
                status, detail = 403, f"Nothing was changed: {fault}."
            case CommandError():
                status, detail = 422, f"Nothing was changed: {fault.field} {fault.message}."
            case NoSuchDeliveryError():
                status, detail = 404, "There is no delivery with this id, or it is gone."
            case WrongStatusError() | KeyTakenError():
                status, detail = 409, f"Nothing was changed: the delivery {fault}."
            case StoreUnavailableError():
                status, detail = (
                    503,
                    "PostgreSQL does not answer. Mail that was accepted is safe there; try again.",
                )
            case SinkholeAwayError():
                status, detail = 502, f"The sinkhole can't be asked: {fault}"
            case _:
                status, detail = 500, "A fault of ours; the log says where."
        return self._problem(request, status, detail)


def _static_files() -> dict[str, tuple[bytes, str]]:
    """Return what the pages refer to, by name: read once, never a path from outside."""
    folder = files(__package__) / "static"
    found = {}
    for entry in folder.iterdir():
        kind = _KINDS.get(f".{entry.name.rpartition('.')[2]}")
        if kind is not None:
            found[entry.name] = (entry.read_bytes(), kind)
    return found


def _to_login(request: Request) -> Response:
    if "hx-request" in request.headers:  # a part of a page whose session is over
        return Response(status_code=204, headers=dict(PAGE_HEADERS) | {"hx-redirect": LOGIN})
    return RedirectResponse(LOGIN, 303, dict(PAGE_HEADERS))


def _sets_cookie(message: Message) -> bool:
    return any(name == b"set-cookie" for name, _ in message["headers"])


def _one_line(name: str) -> str:
    """Return a name that can be recorded; one that can't is left out."""
    try:
        check_line(name, "name")
    except CommandError:
        return ""
    return name
