"""The public send listener's application: `POST /send`, for people's programs, each with a token of its own.

The order of judging: path, method, token, rate, body, sender, and then the one `accept` use case (contract section 4.2). Answered
200 when the mail is durable. A token sends only from addresses that it owns, and the envelope follows From. Idempotency keys are
each owner's own: nobody can learn or block another's.

Called by uvicorn, see `mailkeep.intake.listener`.
"""

import hashlib
from functools import partial
from typing import Final

import msgspec
from starlette.types import Receive, Scope, Send

from mailkeep.core.ownership import Owner
from mailkeep.core.send_request import SendRequest, parse_send
from mailkeep.intake.accept import Accept
from mailkeep.intake.application import (
    Answer,
    HttpApplication,
    TakenRequest,
    acceptance,
    max_body_bytes,
    not_allowed,
    refusal,
    respond,
)
from mailkeep.intake.bearer import Bearers, forbidden
from mailkeep.intake.body import Files, decode_json, with_files
from mailkeep.intake.problems import HttpCode, ProblemError, make_problem
from mailkeep.intake.rate import RateLimitedError, RateLimiter

SEND: Final = "/send"
_SEND: Final = msgspec.json.Decoder(SendRequest)


class SendHttpApp(HttpApplication):
    """The ASGI application."""

    def __init__(self, *, accept: Accept, bearers: Bearers, rate: RateLimiter) -> None:
        super().__init__("send_http")
        self._accept = accept
        self._bearers = bearers
        self._rate = rate
        self._max_bytes = max_body_bytes(accept.policy.rules.limits.message_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["path"] != SEND:
            problem = make_problem(HttpCode.NOT_FOUND, "this path is not part of the API")
            await respond(refusal(problem), send)
        elif scope["method"] != "POST":
            await respond(not_allowed("POST"), send)
        else:
            await self._let_in(scope, receive, send)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            owner = await self._bearers.owner_of(scope["headers"])
            self._take_from_rate(owner, 1)
        except Exception as fault:  # noqa: BLE001 - a boundary: the caller gets a problem, the next one is served
            await respond(self.refusal_of(fault), send)
        else:
            await self.serve(partial(self._take, owner), self._max_bytes, scope, receive, send)

    async def _take(self, owner: Owner, request: TakenRequest) -> Answer:
        sent = (
            await request.decode_aside(_SEND, _with_files)
            if request.is_large
            else decode_json(request.body, _SEND)
        )
        command = parse_send(sent, self._accept.policy.rules)
        assert command.sender is not None
        if not owner.owns(command.sender):
            raise forbidden("it does not own this address", "from")
        self._take_from_rate(owner, len(command.recipients) - 1)
        key = None if request.key is None else _key_of(owner, request.key)
        return acceptance(200, await self._accept.accept(command, key=key, traceparent=request.traceparent))

    def _take_from_rate(self, owner: Owner, count: int) -> None:
        try:
            self._rate.take(owner.name, count)
        except RateLimitedError as fault:
            problem = make_problem(HttpCode.RATE_LIMITED, str(fault))
            raise ProblemError(problem, ((b"retry-after", str(fault.retry_after_s).encode()),)) from None


def _key_of(owner: Owner, key: str) -> str:
    """Return the key under which a mail of `owner` is kept: all owners share the keys of one source."""
    return hashlib.blake2b(f"{owner.name}\n{key}".encode(), digest_size=32).hexdigest()


def _with_files(sent: SendRequest, files: Files) -> SendRequest | None:
    attachments = with_files(sent.attachments, files)
    return None if attachments is None else msgspec.structs.replace(sent, attachments=attachments)
