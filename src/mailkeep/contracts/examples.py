"""The examples in the documents: what is asked, and what the service answers, word for word.

Tests send every one of them to the live service. Ids, instants and measures are those of a past run; all else must be equal.
"""

import base64
from typing import Any, Final

import msgspec

from mailkeep.core.command import FailureCode
from mailkeep.intake.application import KEY_HEADER
from mailkeep.intake.http import BATCH, DELIVERIES, LOGIN_CODES, MAX_LOGIN_CODE_BYTES
from mailkeep.intake.problems import HttpCode, ProblemError, make_problem, problem_of
from mailkeep.operator.api import ROOT
from mailkeep.operator.erase import ErasureReport
from mailkeep.store.erasure import Counts, Live
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.group_commit import OverloadedError

DELIVERY_ID: Final = "01a20320-a200-7d21-9f53-40a7c2b6e810"
TEMPLATE_ID: Final = "01a20320-a205-7a4e-8b1c-93d2f4e60a77"
SCHEDULED_ID: Final = "01a20320-a20a-70f6-a2d8-5be1c9704f3d"
RESENT_ID: Final = "01a20320-a215-7b62-9e30-5d1fa84c7e06"
LOGIN_CODE_ID: Final = "01a20320-a210-7c93-b64f-08d75a1e2b9c"
REPLICA_ID: Final = "01a2031a-2df1-7e70-8d45-c61f0b92e7a4"
UNKNOWN_ID: Final = "01a20320-0000-7000-8000-000000000000"
KEY: Final = "order-10042"
BOUNCED_ID: Final = "01a20320-a219-7b06-9c12-4fd83a50e1c6"
SUPPRESSION_ID: Final = "01a20320-a21b-7f3d-8a40-6c95e0d7b218"
RESEND_KEY: Final = "ticket-77"
WHY: Final = {"reason": "wrong price in it", "actor": "ann"}
FLUSH: Final = f"{ROOT}/queue/flush"
ERASURES: Final = f"{ROOT}/erasures"
REDRIVE: Final = f"{ROOT}/dead-letters/redrive"
SUPPRESSIONS: Final = f"{ROOT}/suppressions"
_REQUESTED_AT_MS: Final = 1_795_348_799_888
_IN_2100_MS: Final = 4_102_444_800_000


class Exchange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request and its answer.

    `method` and `path` are given where the call's own don't say it. The body is `body` as JSON or `text` as it stands,
    padded with spaces to `size_bytes`. Without a request it is an answer that nobody can ask for.
    """

    name: str
    summary: str
    answer: Any
    method: str = ""
    path: str = ""
    query: dict[str, Any] = {}
    headers: dict[str, str] = {}
    body: Any = None
    text: str = ""
    size_bytes: int = 0


class Refusal(msgspec.Struct, frozen=True):
    """A command that is refused with `code`; `key` is its idempotency key."""

    code: FailureCode
    field: str
    message: str
    command: dict[str, Any]
    key: str | None = None


# -- commands ----------------------------------------------------------------------------------------------------

RENDERED: Final[dict[str, Any]] = {
    "payload_mode": "rendered",
    "source": "notification",
    "payload": {
        "to": ["Ann <ann@example.org>"],
        "cc": ["bo@example.org"],
        "subject": "Your order A-10042",
        "text": "Thank you. The invoice is attached.\n",
        "html": "<p>Thank you. The invoice is attached.</p>",
        "attachments": [
            {
                "filename": "invoice.txt",
                "content_type": "text/plain",
                "content": base64.b64encode(b"46.65 EUR\n").decode(),
            }
        ],
    },
}
TEMPLATE: Final[dict[str, Any]] = {
    "payload_mode": "template",
    "payload": {
        "to": ["ann@example.org"],
        "template_id": "welcome",
        "locale": "de-CH",
        "variables": {"product": "Notes", "start_url": "https://example.com/start"},
    },
}
SCHEDULED: Final[dict[str, Any]] = {
    "payload_mode": "rendered",
    "class": "relay",
    "guarantee": "at_most_once",
    "send_at_ms": _IN_2100_MS,
    "expires_at_ms": _IN_2100_MS + 3_600_000,
    "payload": {
        "to": ["ann@example.org"],
        "reply_to": ["Support <support@example.org>"],
        "subject": "A century",
        "text": "Well done.\n",
    },
}
COMMANDS: Final = {"rendered": RENDERED, "template": TEMPLATE, "scheduled": SCHEDULED}
LOGIN_CODE: Final[dict[str, Any]] = {
    "email": "ann@example.org",
    "code": "482913",
    "locale": "en",
    "expires_in_s": 600,
}


def with_payload(command: dict[str, Any], **members: object) -> dict[str, Any]:
    """Return `command` with other members in its payload, without those that are None."""
    payload = {**command["payload"], **members}
    return {**command, "payload": {name: value for name, value in payload.items() if value is not None}}


_PLAIN: Final[dict[str, Any]] = {
    "payload_mode": "rendered",
    "payload": {"to": ["ann@example.org"], "subject": "Hello", "text": "It works.\n"},
}
_FAREWELL: Final = Refusal(
    FailureCode.UNKNOWN_TEMPLATE,
    "payload.template_id",
    "is not the id of a template",
    with_payload(TEMPLATE, template_id="farewell"),
)
REFUSALS: Final = (
    Refusal(FailureCode.MISSING_FIELD, "payload.subject", "is required", with_payload(_PLAIN, subject=None)),
    Refusal(FailureCode.UNKNOWN_FIELD, "priority", "is not a field here", {**_PLAIN, "priority": "high"}),
    Refusal(
        FailureCode.INVALID_FIELD,
        "class",
        "must be one of: auth, transactional, relay",
        {**_PLAIN, "class": "bulk"},
    ),
    Refusal(
        FailureCode.INVALID_ADDRESS,
        "payload.to[0]",
        "not a valid address",
        with_payload(_PLAIN, to=["ann at example.org"]),
    ),
    Refusal(
        FailureCode.INVALID_LOCALE,
        "payload.locale",
        "is not a BCP 47 language tag such as pt-BR",
        with_payload(TEMPLATE, locale="pt_BR"),
    ),
    Refusal(
        FailureCode.UNSUPPORTED_PAYLOAD_MODE,
        "payload_mode",
        "must be one of: rendered, template",
        {**_PLAIN, "payload_mode": "markdown"},
    ),
    Refusal(
        FailureCode.UNSUPPORTED_SOURCE,
        "source",
        "smtp is not a source a producer may name",
        {**_PLAIN, "source": "smtp"},
    ),
    _FAREWELL,
    Refusal(
        FailureCode.MISSING_VARIABLE,
        "payload.variables.start_url",
        "is required by this template",
        with_payload(TEMPLATE, variables={"product": "Notes"}),
    ),
    Refusal(
        FailureCode.TOO_LARGE,
        "payload.variables",
        "is nested too deeply",
        with_payload(TEMPLATE, variables={"product": [[[[[[[[["Notes"]]]]]]]]]}),
    ),
    Refusal(
        FailureCode.IDEMPOTENCY_CONFLICT,
        "idempotency_key",
        "was used before for a different command",
        with_payload(RENDERED, subject="Your order A-10043"),
        key=KEY,
    ),
    Refusal(
        FailureCode.RESERVED_DOMAIN,
        "payload.to",
        "the domain example.test is reserved (RFC 2606) and has no route here",
        with_payload(_PLAIN, to=["ann@example.test"]),
    ),
)
"""A command for each code but `invalid_json`, of which each intake has its own."""


# -- exchanges ---------------------------------------------------------------------------------------------------

_POST: Final[dict[str, Any]] = {"method": "POST", "path": DELIVERIES}
_GET: Final[dict[str, Any]] = {"method": "GET", "path": DELIVERIES}


def _refused(
    summary: str,
    code: FailureCode | HttpCode,
    detail: str,
    *,
    field: str = "",
    status: int | None = None,
    **request: Any,  # noqa: ANN401 - the members of Exchange
) -> Exchange:
    answer = msgspec.to_builtins(make_problem(code, detail, field=field, status=status))
    return Exchange(name=code.value, summary=summary, answer=answer, **request)


def _refused_command(refusal: Refusal) -> Exchange:
    return _refused(
        make_problem(refusal.code, "").title,
        refusal.code,
        f"{refusal.field}: {refusal.message}",
        field=refusal.field,
        headers={KEY_HEADER: refusal.key} if refusal.key else {},
        body=refusal.command,
        **_POST,
    )


def _unprovoked(summary: str, fault: Exception) -> Exchange:
    answer = msgspec.to_builtins(problem_of(fault))
    return Exchange(name=answer["code"], summary=summary, answer=answer)


REFUSED: Final[dict[str, tuple[Exchange, ...]]] = {
    "BadQuery": (
        _refused(
            "A query parameter that is not known",
            FailureCode.UNKNOWN_FIELD,
            "state: is not a field here",
            field="state",
            status=400,
            query={"state": "sent"},
            **_GET,
        ),
        _refused(
            "A query parameter with a wrong value",
            FailureCode.INVALID_FIELD,
            "limit: expected `int` <= 200",
            field="limit",
            status=400,
            query={"limit": 1000},
            **_GET,
        ),
    ),
    "BadRequest": (
        _refused(
            "A body that is cut off",
            FailureCode.INVALID_JSON,
            "the body: is not valid JSON: Expecting property name enclosed in double quotes at character 28",
            text='{"payload_mode": "rendered",',
            **_POST,
        ),
        _refused(
            "A login code without a key",
            FailureCode.MISSING_FIELD,
            "the header Idempotency-Key is required",
            field=KEY_HEADER,
            status=400,
            method="POST",
            path=LOGIN_CODES,
            body=LOGIN_CODE,
        ),
        _refused(
            "A key with a space in it",
            FailureCode.INVALID_FIELD,
            "the header Idempotency-Key must be 1 to 255 visible ASCII characters",
            field=KEY_HEADER,
            status=400,
            headers={KEY_HEADER: "order 10042"},
            body=_PLAIN,
            **_POST,
        ),
    ),
    "Unauthorized": (
        _refused(
            "A token that is not one of `MAIL_INTERNAL_HTTP_TOKENS`",
            HttpCode.UNAUTHORIZED,
            "send it as Authorization: Bearer …",
            headers={"Authorization": "Bearer not-one-of-them"},
            **_GET,
        ),
    ),
    "NotFound": (
        _refused(
            "An id that no delivery has",
            HttpCode.NOT_FOUND,
            "no delivery has this id",
            method="GET",
            path=f"{DELIVERIES}/{UNKNOWN_ID}",
        ),
    ),
    "WrongStatus": (
        _refused(
            "A delivery that has ended can't be held",
            HttpCode.WRONG_STATUS,
            "the delivery is sent; only what waits can be held",
            method="POST",
            path=f"{DELIVERIES}/{DELIVERY_ID}/hold",
            body=WHY,
        ),
    ),
    "LiveMail": (
        _unprovoked(
            "Mail to this address waits, and `cancel` is not given",
            ProblemError(
                make_problem(
                    HttpCode.LIVE_MAIL,
                    "1 deliveries of this address still wait and 0 API keys in force own it; nothing was erased",
                )
            ),
        ),
    ),
    "Misdirected": (
        _unprovoked(
            "The Host header names another machine, and there are no tokens",
            ProblemError(
                make_problem(
                    HttpCode.MISDIRECTED,
                    "without tokens it answers under the names of this machine only, such as localhost",
                )
            ),
        ),
    ),
    "MethodNotAllowed": (
        _refused(
            "A method that is not described here",
            HttpCode.METHOD_NOT_ALLOWED,
            "use one of: POST",
            method="PUT",
            path=LOGIN_CODES,
        ),
    ),
    "TooLarge": (
        _refused(
            "A body beyond its bound",
            FailureCode.TOO_LARGE,
            f"the body is larger than {MAX_LOGIN_CODE_BYTES} bytes",
            status=413,
            method="POST",
            path=LOGIN_CODES,
            headers={KEY_HEADER: "too-large"},
            body=LOGIN_CODE,
            size_bytes=MAX_LOGIN_CODE_BYTES + 1,
        ),
    ),
    "UnsupportedMediaType": (
        _refused(
            "A body that is announced as something else",
            HttpCode.UNSUPPORTED_MEDIA_TYPE,
            "send UTF-8 JSON as application/json, not compressed",
            headers={"Content-Type": "text/plain"},
            body=_PLAIN,
            **_POST,
        ),
    ),
    "RefusedCommand": tuple(map(_refused_command, REFUSALS)),
    "RefusedLoginCode": (
        _refused(
            "A code that is longer than 64 characters",
            FailureCode.INVALID_FIELD,
            "code: expected `str` of length <= 64",
            field="code",
            method="POST",
            path=LOGIN_CODES,
            headers={KEY_HEADER: "signin-8f2a72"},
            body={**LOGIN_CODE, "code": "4" * 65},
        ),
    ),
    "RefusedBatch": (
        _refused(
            "A batch without commands",
            FailureCode.MISSING_FIELD,
            "commands: is required",
            field="commands",
            method="POST",
            path=BATCH,
            body={},
        ),
    ),
    "RefusedChange": (
        _refused(
            "A change without a reason",
            FailureCode.MISSING_FIELD,
            "reason: is required",
            field="reason",
            method="POST",
            path=f"{DELIVERIES}/{DELIVERY_ID}/hold",
            body={"actor": "ann"},
        ),
    ),
    "RefusedResend": (
        _refused(
            "A key that belongs to the resend of another delivery",
            FailureCode.IDEMPOTENCY_CONFLICT,
            "the key belongs to the resend of another delivery",
            field=KEY_HEADER,
            method="POST",
            path=f"{DELIVERIES}/{TEMPLATE_ID}/resend",
            headers={KEY_HEADER: RESEND_KEY},
            body=WHY,
        ),
    ),
    "RefusedRedrive": (
        _refused(
            "A cause that there is not",
            FailureCode.INVALID_FIELD,
            "cause: must be one of: ladder_exhausted, poison, operator",
            field="cause",
            method="POST",
            path=REDRIVE,
            body={"reason": "the relay is back", "cause": "relay"},
        ),
    ),
    "RefusedFlush": (
        _refused(
            "Two filters at once",
            FailureCode.MISSING_FIELD,
            "the body: needs exactly one of: delivery_id, domain, next_hop, all",
            method="POST",
            path=FLUSH,
            body={"domain": "example.org", "all": True},
        ),
    ),
    "RefusedErasure": (
        _refused(
            "A reason that holds the address: it would be kept",
            FailureCode.INVALID_FIELD,
            "reason: must not hold the address: it is kept",
            field="reason",
            method="POST",
            path=ERASURES,
            body={"recipient": "ann@example.org", "reason": "ann@example.org asked"},
        ),
    ),
    "InternalError": (_unprovoked("A fault of Mailkeep", RuntimeError()),),
    "Unavailable": (
        _unprovoked("PostgreSQL is away", StoreUnavailableError("", in_doubt=False)),
        _unprovoked("More waits for a commit than there is room for", OverloadedError()),
    ),
}
"""What is refused, by the names of the documents."""


_BEGAN_AT: Final = "2026-11-22T12:00:00.014204Z"
_ENDED_AT: Final = "2026-11-22T12:00:00.097390Z"
_DELIVERED: Final[dict[str, Any]] = {
    "severity": "success",
    "scope": "message",
    "rule": "delivered",
    "code": 250,
    "enhanced": "2.0.0",
}
_SENT: Final[dict[str, Any]] = {
    "delivery_id": DELIVERY_ID,
    "status": "sent",
    "class": "transactional",
    "source": "notification",
    "guarantee": "at_least_once",
    "next_hop": "default",
    "domain": "example.org",
    "recipients": [
        {"address": "a***@e***", "state": "sent", "reason": None},
        {"address": "b***@e***", "state": "sent", "reason": None},
    ],
    "size_bytes": 990,
    "attempts": 1,
    "takeovers": 0,
    "accepted_at": _BEGAN_AT,
    "due_at": None,
    "expires_at": None,
    "finished_at": _ENDED_AT,
    "claimed_by": None,
    "template_id": None,
    "catalog_version": None,
    "locale": None,
    "reason": None,
    "rule": "delivered",
    "parent_id": None,
    "dead_letter": None,
}
_WAITING: Final[dict[str, Any]] = {
    **_SENT,
    "delivery_id": SCHEDULED_ID,
    "status": "rendered",
    "class": "relay",
    "source": "api",
    "guarantee": "at_most_once",
    "recipients": [{"address": "a***@e***", "state": "open", "reason": None}],
    "size_bytes": 358,
    "attempts": 0,
    "due_at": "2100-01-01T00:00:00Z",
    "expires_at": "2100-01-01T01:00:00Z",
    "finished_at": None,
    "rule": None,
}
_ATTEMPT: Final[dict[str, Any]] = {
    "number": 1,
    "status": "provider_accepted",
    "next_hop": "default",
    "replica_id": REPLICA_ID,
    "started_at": _BEGAN_AT,
    "finished_at": _ENDED_AT,
    "certainty": "delivered",
    "phase": "dot",
    **_DELIVERED,
    "reply": "Ok",
    "recipients": [{"ordinal": ordinal, **_DELIVERED, "text": "Ok"} for ordinal in range(2)],
    "steps": [
        {"phase": phase, "sent": sent, "reply": reply, "at_ms": at_ms}
        for phase, sent, reply, at_ms in (
            ("connect", "connect to 192.0.2.25 port 587", "connected", 4.1),
            ("greeting", "", "220 mx.example.net", 8.3),
            ("ehlo", "EHLO mail.example.com", "250 mx.example.net SIZE 33554432 8BITMIME HELP", 12.6),
            ("mail", "MAIL FROM:<…> SIZE=990", "250 OK", 16.8),
            ("rcpt", "RCPT TO:<…>", "250 2.1.5 Ok", 21.0),
            ("rcpt", "RCPT TO:<…>", "250 2.1.5 Ok", 25.2),
            ("data", "DATA", "354 End data with <CR><LF>.<CR><LF>", 29.4),
            ("dot", "990 bytes and the final dot", "250 2.0.0 Ok", 71.9),
        )
    ],
}
_REPLICA: Final[dict[str, Any]] = {
    "replica_id": REPLICA_ID,
    "state": "live",
    "host": "mail-1",
    "pid": 41,
    "version": "0.1.0",
    "in_flight": 0,
    "started_at": "2026-11-22T11:52:57.100937Z",
    "last_seen_at": "2026-11-22T12:00:09.402118Z",
    "silent_s": 0.84,
    "hops_out": {},
}


_SUPPRESSION: Final[dict[str, Any]] = {
    "suppression_id": SUPPRESSION_ID,
    "address": "gone@example.org",
    "reason": "hard_bounce",
    "evidence": "550 5.1.1 No such user",
    "rule": "rcpt_mailbox_gone",
    "delivery_id": BOUNCED_ID,
    "attempt": 1,
    "actor": None,
    "created_at": _ENDED_AT,
    "expires_at": "2026-12-22T12:00:00.097390Z",
}


_EVENT: Final[dict[str, Any]] = {
    "event_id": f"evt_{BOUNCED_ID}_42",
    "type": "delivery.failed",
    "timestamp": _ENDED_AT,
    "data": {
        "delivery_id": BOUNCED_ID,
        "status": "failed",
        "source": "api",
        "class": "transactional",
        "attempts": 1,
        "accepted_at": _BEGAN_AT,
        "idempotency_key": None,
        "parent_id": None,
        "template_id": None,
        "rule": "rcpt_mailbox_gone",
        "cause": None,
    },
}


def _taken(name: str, summary: str, delivery_id: str, status: str, **request: Any) -> Exchange:  # noqa: ANN401 - the members of Exchange
    return Exchange(
        name=name, summary=summary, answer={"delivery_id": delivery_id, "status": status}, **request
    )


def _changed(name: str, summary: str, delivery_id: str, status: str) -> Exchange:
    path = f"{DELIVERIES}/{delivery_id}/{name}"
    return _taken(name, summary, delivery_id, status, path=path, body=WHY)


TAKEN: Final[dict[str, tuple[Exchange, ...]]] = {
    "takeLoginCode": (
        Exchange(
            name="login_code",
            summary="A login code for ten minutes",
            headers={KEY_HEADER: "signin-8f2a71"},
            body=LOGIN_CODE,
            answer={"outcome": "sent", "delivery_id": LOGIN_CODE_ID},
        ),
    ),
    "takeDelivery": (
        _taken(
            "rendered",
            "Ready content, with an attachment, for two recipients",
            DELIVERY_ID,
            "sending",
            headers={KEY_HEADER: KEY},
            body=RENDERED,
        ),
        _taken("template", "Content from a template", TEMPLATE_ID, "sending", body=TEMPLATE),
        _taken("scheduled", "Not before an instant, at most once", SCHEDULED_ID, "rendered", body=SCHEDULED),
    ),
    "takeBatch": (
        Exchange(
            name="batch",
            summary="A command that was taken before, and one that can't be taken",
            body={"commands": [{**RENDERED, "idempotency_key": KEY}, _FAREWELL.command]},
            answer={
                "answers": [
                    {"status": 202, "delivery_id": DELIVERY_ID, "replayed": True},
                    {"status": 422, "problem": _refused_command(_FAREWELL).answer},
                ]
            },
        ),
    ),
    "listDeliveries": (
        Exchange(
            name="waiting",
            summary="What waits",
            query={"status": "waiting", "class": "relay", "limit": 10},
            answer={"deliveries": [_WAITING], "cursor": None},
        ),
    ),
    "showDelivery": (
        Exchange(name="sent", summary="A delivery that was sent to both recipients", answer=_SENT),
    ),
    "listAttempts": (
        Exchange(name="accepted", summary="The only attempt it took", answer={"attempts": [_ATTEMPT]}),
    ),
    "holdDelivery": (_changed("hold", "Its price is wrong", SCHEDULED_ID, "held"),),
    "releaseDelivery": (_changed("release", "The price was right", SCHEDULED_ID, "rendered"),),
    "cancelDelivery": (_changed("cancel", "It was sent by hand", SCHEDULED_ID, "cancelled"),),
    "resendDelivery": (
        _taken(
            "resend",
            "Ann never saw it",
            RESENT_ID,
            "rendered",
            path=f"{DELIVERIES}/{DELIVERY_ID}/resend",
            headers={KEY_HEADER: RESEND_KEY},
            body={"reason": "ann asks for it", "actor": "bo"},
        ),
    ),
    "explainDelivery": (
        Exchange(
            name="explained",
            summary="A delivery that was sent",
            answer={
                "delivery_id": DELIVERY_ID,
                "status": "sent",
                "class": "transactional",
                "why": "every recipient was accepted by the next hop",
                "next": "nothing; it has ended",
                "next_at": None,
                "expires_at": None,
                "attempts": 1,
                "waits_used": 0,
                "waits": 9,
                "route": {
                    "next_hop": "default",
                    "live_replicas": 1,
                    "out_for": 0,
                    "since": None,
                    "cause": None,
                },
                "last_attempt": _ATTEMPT,
                "template": None,
                "changes": [],
            },
        ),
    ),
    "listDeadLetters": (
        Exchange(name="none", summary="No dead letter", answer={"deliveries": [], "cursor": None}),
    ),
    "redriveDeadLetters": (
        Exchange(
            name="dry_run",
            summary="What would be sent once more: nothing",
            body={
                "reason": "the relay is back",
                "actor": "ann",
                "cause": "ladder_exhausted",
                "dry_run": True,
            },
            answer={
                "redriven": 0,
                "resent_before": 0,
                "erased": 0,
                "last_due_in_s": 0.0,
                "deliveries": [],
                "cursor": None,
            },
        ),
    ),
    "erase": (
        Exchange(
            name="nobody",
            summary="An address of which nothing is stored",
            body={"recipient": "nobody@example.org", "reason": "request 4711", "actor": "eve"},
            answer=msgspec.to_builtins(ErasureReport(dry_run=False, erased=Counts(), left=Live())),
        ),
    ),
    "listEvents": (
        Exchange(
            name="failed",
            summary="A mail that was refused for good",
            query={"type": "delivery.failed"},
            answer={"events": [_EVENT], "after": "3f2a-2a"},
        ),
    ),
    "listMalformedCommands": (
        Exchange(
            name="none",
            summary="No malformed command",
            query={"code": "invalid_json"},
            answer={"malformed_commands": [], "cursor": None},
        ),
    ),
    "listSuppressions": (
        Exchange(
            name="hard_bounce",
            summary="An address that its mail server does not know",
            query={"recipient": "gone@example.org"},
            answer={"suppressions": [_SUPPRESSION], "cursor": None},
        ),
    ),
    "removeSuppression": (
        Exchange(
            name="removed",
            summary="The mailbox is there again",
            query={"actor": "ann", "note": "its owner called"},
            answer=_SUPPRESSION,
        ),
    ),
    "listReplicas": (Exchange(name="one", summary="One replica", answer={"replicas": [_REPLICA]}),),
    "flushQueue": (
        Exchange(
            name="domain",
            summary="A domain for which nothing waits for a later attempt",
            body={"domain": "example.org"},
            answer={"flushed": 0},
        ),
    ),
}
"""What is taken or read, by the names of the operations, in an order in which it can be asked."""


# -- the stream --------------------------------------------------------------------------------------------------


def stream_entry(command: dict[str, Any], key: str) -> dict[str, str]:
    """Return `command` as an entry of the stream: flat string fields."""
    members = {name: str(value) for name, value in command.items() if name != "payload"}
    return {
        "delivery_id": DELIVERY_ID,
        "source": "notification",
        "idempotency_key": key,
        "requested_at_ms": str(_REQUESTED_AT_MS),
        **members,
        "payload_json": msgspec.json.encode(command["payload"]).decode(),
    }
