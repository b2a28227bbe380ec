"""The sinkhole's own HTTP API: its mode, its inbox and its transcripts as JSON, for tests, people and the CLI.

It listens on loopback, where no token is asked for but the Host must be this machine's (a page in a browser can't reach it by
a name of its own), or elsewhere with a bearer token. Addresses and messages are answered in clear: that is what it is for.
Faults are problem documents (RFC 9457). Whoever starts the sinkhole serves this application beside it.
"""

import hmac
from collections.abc import Awaitable, Callable
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Final, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mailkeep.core.host import is_local
from mailkeep.sinkhole.capture import Captured
from mailkeep.sinkhole.script import UnknownModeError, describe, parse_mode
from mailkeep.sinkhole.server import Sinkhole
from mailkeep.sinkhole.transcripts import Connection, Line
from mailkeep.sinkhole.wire import subject_of

MAX_BODY_BYTES: Final = 1024  # of a request: a mode
MAX_PAGE: Final = 1000
USUAL_PAGE: Final = 50
JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
URN: Final = "urn:mailkeep:problem:"

P = TypeVar("P", bound=msgspec.Struct)
Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)]


class ModeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mode to take."""

    mode: str


class ModeAnswer(msgspec.Struct, frozen=True):
    """The mode in force, and what it does."""

    mode: str
    meaning: str


class MessageLine(msgspec.Struct, frozen=True):
    """One message of the inbox: its envelope, and its subject as it was written (RFC 2047 is not undone)."""

    id: str
    received_at: datetime
    client: str
    sender: str
    recipients: tuple[str, ...]
    subject: str
    message_id: str
    size_bytes: int
    is_answered: bool
    is_tls: bool
    is_authenticated: bool
    anomalies: tuple[str, ...]
    connection_id: str


class MessageAnswer(msgspec.Struct, frozen=True):
    """One message whole; `text` is its octets as UTF-8, what is none of that escaped."""

    message: MessageLine
    text: str


class Inbox(msgspec.Struct, frozen=True):
    """The newest messages first. Of the `taken` ones `kept` are in memory, `dropped` made room for newer ones."""

    messages: tuple[MessageLine, ...]
    taken: int
    kept: int
    dropped: int


class Forgotten(msgspec.Struct, frozen=True):
    """How many messages were dropped."""

    forgotten: int


class ConnectionLine(msgspec.Struct, frozen=True):
    """One connection, and how much was said on it."""

    id: str
    client: str
    mode: str
    began_at: datetime
    ended_at: datetime | None
    lines: int


class Connections(msgspec.Struct, frozen=True):
    """The newest connections first; `dropped` made room for newer ones."""

    connections: tuple[ConnectionLine, ...]
    taken: int
    dropped: int


class Transcript(msgspec.Struct, frozen=True):
    """What was said on one connection; `left_out` lines came after the bound."""

    connection: ConnectionLine
    lines: tuple[Line, ...]
    left_out: int


class Refusal(HTTPException):
    """Ends a request: a status, a stable code and a sentence."""

    def __init__(self, status: HTTPStatus, code: str, detail: str) -> None:
        super().__init__(status, detail)
        self.code = code


class _InboxParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    recipient: str | None = None
    limit: Limit = USUAL_PAGE


class _PageParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    limit: Limit = USUAL_PAGE


_ENCODER: Final = msgspec.json.Encoder()
_MODE: Final = msgspec.json.Decoder(ModeRequest)


class SinkholeApi:
    """The ASGI application over `sinkhole`. Without a `token` only requests that name this machine are answered."""

    def __init__(self, sinkhole: Sinkhole, token: str | None = None) -> None:
        self._sinkhole = sinkhole
        self._token = token.encode() if token else None
        self._app = Starlette(
            routes=[
                Route("/mode", _answering(self._show_mode)),
                Route("/mode", _answering(self._put_mode), methods=["PUT"]),
                Route("/messages", _answering(self._list_messages)),
                Route("/messages", _answering(self._forget_messages), methods=["DELETE"]),
                Route("/messages/{id}", _answering(self._show_message)),
                Route("/messages/{id}/raw", self._raw_message),
                Route("/connections", _answering(self._list_connections)),
                Route("/connections/{id}", _answering(self._show_connection)),
            ],
            exception_handlers={HTTPException: _refuse},
        )
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app: ASGIApp = self._app
        if refusal := self._may_not(Request(scope)):
            app = await _refuse(Request(scope), refusal)
        await app(scope, receive, send)

    def _may_not(self, request: Request) -> Refusal | None:
        if self._token is None:
            if is_local(request.headers.get("host", "")):
                return None
            return Refusal(HTTPStatus.FORBIDDEN, "forbidden", "the Host header must name this machine")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if hmac.compare_digest(given.strip().encode(), self._token) and scheme.lower() == "bearer":
            return None
        return Refusal(HTTPStatus.UNAUTHORIZED, "unauthorized", "send it as Authorization: Bearer …")

    async def _show_mode(self, _request: Request) -> ModeAnswer:
        mode = self._sinkhole.source.current()
        return ModeAnswer(str(mode), describe(mode))

    async def _put_mode(self, request: Request) -> ModeAnswer:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", f"must be {JSON}")
        try:
            mode = parse_mode(_MODE.decode(await _body(request)).mode)
        except msgspec.DecodeError as fault:  # ValidationError is one; its words hold no value
            raise Refusal(HTTPStatus.BAD_REQUEST, "invalid_json", str(fault)) from None
        except UnknownModeError as fault:
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_field", f"mode: {fault}") from None
        try:
            await self._sinkhole.source.put(mode)
        except OSError as fault:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", str(fault)) from None
        return ModeAnswer(str(mode), describe(mode))

    async def _list_messages(self, request: Request) -> Inbox:
        wanted, capture = _parameters(request, _InboxParameters), self._sinkhole.capture
        found: list[MessageLine] = []
        kept = capture.messages
        for message in reversed(kept):
            if len(found) == wanted.limit:
                break
            if wanted.recipient is None or wanted.recipient in message.recipients:
                found.append(_line(message))
        return Inbox(tuple(found), capture.total_count, len(kept), capture.dropped_count)

    async def _forget_messages(self, _request: Request) -> Forgotten:
        return Forgotten(self._sinkhole.capture.forget())

    async def _show_message(self, request: Request) -> MessageAnswer:
        message = self._message(request)
        return MessageAnswer(_line(message), message.body.decode("utf-8", "backslashreplace"))

    async def _raw_message(self, request: Request) -> Response:
        return Response(self._message(request).body, media_type="message/rfc822")

    def _message(self, request: Request) -> Captured:
        message = self._sinkhole.capture.find(request.path_params["id"])
        if message is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "not_found", "no such message in the inbox (any more)")
        return message

    async def _list_connections(self, request: Request) -> Connections:
        limit, transcripts = _parameters(request, _PageParameters).limit, self._sinkhole.transcripts
        if transcripts is None:
            return Connections((), 0, 0)
        newest = tuple(_connection_line(each) for each in transcripts.connections[: -limit - 1 : -1])
        return Connections(newest, transcripts.total_count, transcripts.dropped_count)

    async def _show_connection(self, request: Request) -> Transcript:
        transcripts = self._sinkhole.transcripts
        found = transcripts.find(request.path_params["id"]) if transcripts else None
        if found is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "not_found", "no transcript of such a connection (any more)")
        return Transcript(_connection_line(found), tuple(found.lines), found.left_out)


def _answering(
    call: Callable[[Request], Awaitable[msgspec.Struct]],
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return Response(_ENCODER.encode(await call(request)), media_type=JSON)

    return answer


async def _refuse(_request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    status = HTTPStatus(fault.status_code)
    code = fault.code if isinstance(fault, Refusal) else status.phrase.lower().replace(" ", "_")
    problem = {"type": f"{URN}{code}", "title": status.phrase, "status": status, "detail": fault.detail}
    headers = dict(fault.headers or {})
    if status is HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = 'Bearer realm="mailkeep sinkhole"'
    return Response(_ENCODER.encode(problem), status, headers, PROBLEM)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            detail = f"the body is larger than {MAX_BODY_BYTES} bytes"
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", detail)
    return bytes(body)


def _parameters(request: Request, kind: type[P]) -> P:
    try:
        return msgspec.convert(dict(request.query_params), kind, strict=False)
    except msgspec.ValidationError as fault:
        raise Refusal(HTTPStatus.BAD_REQUEST, "invalid_field", str(fault)) from None


def _line(message: Captured) -> MessageLine:
    return MessageLine(
        id=message.id,
        received_at=message.received_at,
        client=message.client,
        sender=message.sender,
        recipients=message.recipients,
        subject=subject_of(message.body),
        message_id=message.message_id,
        size_bytes=len(message.body),
        is_answered=message.is_answered,
        is_tls=message.is_tls,
        is_authenticated=message.is_authenticated,
        anomalies=message.anomalies,
        connection_id=message.connection_id,
    )


def _connection_line(connection: Connection) -> ConnectionLine:
    return ConnectionLine(
        connection.id,
        connection.client,
        connection.mode,
        connection.began_at,
        connection.ended_at,
        len(connection.lines),
    )
