"""What validation adds to the types of what goes over the wire, as JSON Schema, member by member.

A schema may say less than validation does, never more: everything that is taken fits. What no schema can say (an address
that is valid in every part, an instant in the past, a limit that each deployment sets) stands in the descriptions. Limits are
shown with their defaults.
"""

import re
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from mailkeep.core.address import MAX_TEXT_CHARS
from mailkeep.core.command import (
    CONTENT_ID,
    CONTENT_TYPE,
    ID_DRIFT_S,
    INTAKE_SOURCES,
    KEY,
    LOCALE,
    MAX_SUPERSEDE_KEY_CHARS,
    MAX_URL_CHARS,
    TEMPLATE_ID,
    TRACEPARENT,
    UNSUBSCRIBE_URL,
    Attachment,
    DeliveryRequest,
    FailureCode,
    Limits,
    LoginCodeRequest,
    Payload,
    PayloadMode,
)
from mailkeep.core.delivery import (
    DEAD_LETTER_CAUSES,
    Certainty,
    DeliveryClass,
    DeliveryStatus,
    Guarantee,
    Source,
)
from mailkeep.core.event import EVENT_STATUSES, EVENT_TYPES, Event, EventData
from mailkeep.core.malformed import Intake
from mailkeep.core.outcome import Phase, Scope, Severity
from mailkeep.core.queue import HopOut
from mailkeep.core.send_request import SendRequest
from mailkeep.core.suppression import SuppressionReason
from mailkeep.intake.application import DeliveryAnswer
from mailkeep.intake.commands import MAX_AGE_S
from mailkeep.intake.http import MAX_COMMANDS, BatchRequest, LoginCodeAnswer
from mailkeep.intake.problems import URN, HttpCode, Problem
from mailkeep.operator.api import (
    EventParameters,
    FlushRequest,
    ListParameters,
    MalformedParameters,
    RemovalParameters,
    SuppressionParameters,
)
from mailkeep.operator.changes import Changed, Why
from mailkeep.operator.erase import ErasureRequest
from mailkeep.operator.explain import Explanation
from mailkeep.operator.malformed import MalformedView
from mailkeep.operator.queue import (
    WAITING_WORD,
    AttemptView,
    DeliveryView,
    RecipientView,
    ReplicaView,
    RouteFacts,
)
from mailkeep.operator.redrive import RedriveRequest
from mailkeep.store.changes import Verb
from mailkeep.store.reads import StoredChange

Schema: TypeAlias = dict[str, Any]

COMMAND: Final = "DeliveryCommand"
MAILBOX: Final = "Mailbox"
PAYLOADS: Final = {PayloadMode.RENDERED: "RenderedPayload", PayloadMode.TEMPLATE: "TemplatePayload"}

_LIMITS: Final = Limits()
_DAY_S: Final = 86_400
_UNSAFE: Final = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
_UUID_7: Final = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
_BASE64: Final = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"


def whole(pattern: str | re.Pattern[str]) -> Schema:
    """Return the schema of a text that matches `pattern` as a whole."""
    return {"pattern": f"^(?:{pattern if isinstance(pattern, str) else pattern.pattern})$"}


def one_of(words: Iterable[str]) -> Schema:
    """Return the schema of one of `words`."""
    return {"enum": [str(word) for word in words]}


def having(name: str, schema: Schema) -> Schema:
    """Return the schema of an object that has the member `name`, and has it so."""
    return {"required": [name], "properties": {name: schema}}


def saying(description: str, **schema: object) -> Schema:
    """Return `schema` with a description."""
    return {"description": description, **schema}


_ONE_LINE: Final = whole(f"[^{_UNSAFE}]*")
_BODY: Final = whole(r"[^\x00]*")
_MAILBOX: Final[Schema] = {
    "type": "string",
    "format": "mailbox",
    "maxLength": MAX_TEXT_CHARS,
    **whole(f"[^{_UNSAFE}]+@[^{_UNSAFE}]+"),
}
_MAILBOXES: Final[Schema] = {"items": {"$ref": MAILBOX}}
_LOCALE: Final = saying("A BCP 47 language tag such as `pt-BR`.", **whole(LOCALE))

ADDED: Final[dict[str, Schema]] = {
    MAILBOX: saying(
        '`ann@example.org`, `Ann <ann@example.org>` or `"Ann, B." <ann@example.org>`.', **_MAILBOX
    )
}
"""Schemas that no type has."""

MEMBERS: Final[dict[type, dict[str, Schema]]] = {
    DeliveryRequest: {
        "payload": saying(f"By `payload_mode` a `{'` or a `'.join(PAYLOADS.values())}`.", type="object"),
        "payload_mode": one_of(PayloadMode),
        "source": saying("Who asks.", **one_of(sorted(INTAKE_SOURCES))),
        "idempotency_key": saying(
            "Names the reason of the mail: one key of one source is one delivery.", **whole(KEY)
        ),
        "delivery_id": saying(
            f"An id of your own: a UUIDv7 that is at most {ID_DRIFT_S / _DAY_S:g} day old over HTTP, elsewhere"
            f" {MAX_AGE_S / _DAY_S:g} days.",
            **whole(_UUID_7),
        ),
        "requested_at_ms": {
            "description": "When it was asked for, in Unix milliseconds; checked and not used."
        },
        "class": saying(
            "How it is kept. Default: `auth` for source `authsession`, else `transactional`.",
            **one_of(DeliveryClass),
        ),
        "guarantee": saying(
            "What an unknown outcome leads to. Default: by class, `MAIL_GUARANTEE_*`.", **one_of(Guarantee)
        ),
        "send_at_ms": {"description": "Not before this instant, in Unix milliseconds."},
        "expires_at_ms": {
            "description": "Not after this instant, in Unix milliseconds: later than now and than `send_at_ms`."
        },
        "supersede_key": saying(
            "A newer command with the same key and recipients cancels this one while it waits.",
            minLength=1,
            maxLength=MAX_SUPERSEDE_KEY_CHARS,
            **_ONE_LINE,
        ),
        "traceparent": saying("W3C Trace Context of what this belongs to.", **whole(TRACEPARENT)),
    },
    Payload: {
        "to": saying(
            f"With `cc` and `bcc` at most `MAIL_LIMIT_RECIPIENTS` ({_LIMITS.recipients}) addresses.",
            minItems=1,
            **_MAILBOXES,
        ),
        "cc": _MAILBOXES,
        "bcc": _MAILBOXES,
        "reply_to": _MAILBOXES,
        "attachments": {"description": f"At most `MAIL_LIMIT_ATTACHMENTS` ({_LIMITS.attachments})."},
        "list_unsubscribe": saying(
            "An https URL; posting to it ends the subscription at once (RFC 8058).",
            maxLength=MAX_URL_CHARS,
            **whole(UNSUBSCRIBE_URL),
        ),
        "subject": saying(
            f"At most `MAIL_LIMIT_SUBJECT_CHARS` ({_LIMITS.subject_chars}) characters.", **_ONE_LINE
        ),
        "text": saying(f"At most `MAIL_LIMIT_BODY_BYTES` ({_LIMITS.body_bytes}) bytes.", **_BODY),
        "html": saying("Bounded like `text`. Alone, a text is made from it.", **_BODY),
        "template_id": saying("A template of the catalog.", **whole(TEMPLATE_ID)),
        "locale": _LOCALE,
        "variables": {
            "description": "What the template declares. At most `MAIL_LIMIT_VARIABLES_BYTES` "
            f"({_LIMITS.variables_bytes}) bytes and `MAIL_LIMIT_VARIABLES_DEPTH` ({_LIMITS.variables_depth}) levels."
        },
    },
    Attachment: {
        "filename": _ONE_LINE,
        "content": saying(
            f"At most `MAIL_LIMIT_ATTACHMENT_BYTES` ({_LIMITS.attachment_bytes}) when decoded.",
            **whole(_BASE64),
        ),
        "content_type": whole(CONTENT_TYPE),
        "content_id": whole(CONTENT_ID),
    },
    SendRequest: {
        "from": {"$ref": MAILBOX},
        "to": saying(
            f"With `cc` and `bcc` at most `MAIL_LIMIT_RECIPIENTS` ({_LIMITS.recipients}) addresses.",
            minItems=1,
            **_MAILBOXES,
        ),
        "cc": _MAILBOXES,
        "bcc": _MAILBOXES,
        "reply_to": {"anyOf": [{"$ref": MAILBOX}, {"type": "array", **_MAILBOXES}]},
        "attachments": {"description": f"At most `MAIL_LIMIT_ATTACHMENTS` ({_LIMITS.attachments})."},
        "subject": saying(
            f"At most `MAIL_LIMIT_SUBJECT_CHARS` ({_LIMITS.subject_chars}) characters.", **_ONE_LINE
        ),
        "text": saying(f"At most `MAIL_LIMIT_BODY_BYTES` ({_LIMITS.body_bytes}) bytes.", **_BODY),
        "body": saying("Another name for `text`.", **_BODY),
        "html": saying("Bounded like `text`. Alone, a text is made from it.", **_BODY),
    },
    LoginCodeRequest: {
        "email": {"$ref": MAILBOX},
        "code": _ONE_LINE,
        "locale": _LOCALE,
        "expires_in_s": {"description": "Seconds from acceptance on. Default: `MAIL_AUTH_EXPIRY`."},
        "purpose": _ONE_LINE,
    },
    BatchRequest: {
        "commands": saying(
            "One that does not fit is refused by itself.", maxItems=MAX_COMMANDS, items={"$ref": COMMAND}
        )
    },
    ListParameters: {
        "status": saying(
            "May be repeated; `waiting` is `queued` and `rendered`.",
            items={"type": "string", **one_of((*DeliveryStatus, WAITING_WORD))},
        ),
        "source": one_of(Source),
        "class": one_of(DeliveryClass),
        "template": {"description": "The template it was rendered from."},
        "recipient": saying("The whole address of one recipient.", **_MAILBOX),
        "rule": {"description": "The rule that its last failed attempt matched."},
        "since": {"description": "By the instant in the id; with an offset."},
        "until": {"description": "By the instant in the id; with an offset."},
        "cursor": {"description": "`cursor` of the page before."},
    },
    MalformedParameters: {
        "code": one_of(FailureCode),
        "source": {"description": "As the command had it."},
        "cursor": {"description": "`cursor` of the page before."},
    },
    SuppressionParameters: {
        "recipient": saying("The whole address of one recipient.", **_MAILBOX),
        "reason": one_of(SuppressionReason),
        "cursor": {"description": "`cursor` of the page before."},
    },
    RemovalParameters: {"actor": saying("Who.", **_ONE_LINE), "note": saying("Why.", **_ONE_LINE)},
    RedriveRequest: {
        "reason": _ONE_LINE,
        "actor": saying("Who does it; a name that your people know.", **_ONE_LINE),
        "cause": one_of(DEAD_LETTER_CAUSES),
        "rule": {"description": "The rule that its last failed attempt matched."},
        "domain": {"description": "Of the first recipient."},
        "class": one_of(DeliveryClass),
        "source": one_of(Source),
        "since": {"description": "Buried at this instant or later; with an offset."},
        "until": {"description": "Buried before this instant; with an offset."},
        "limit": {"description": "Deliveries to make."},
        "rate_per_s": {"description": "How many of them are due in a second."},
        "wait_s": {"description": "When the first of them is due, in seconds from now."},
        "cursor": {"description": "`cursor` of the answer before."},
    },
    EventParameters: {
        "type": saying("May be repeated.", items={"type": "string", **one_of(EVENT_TYPES)}),
        "after": saying("`after` of the page before.", **whole("[0-9a-f]{1,16}-[0-9a-f]{1,16}")),
    },
    Event: {"type": one_of(EVENT_TYPES), "timestamp": {"format": "date-time"}},
    EventData: {
        "status": one_of(status for status in DeliveryStatus if status in EVENT_STATUSES),
        "source": one_of(Source),
        "class": one_of(DeliveryClass),
        "cause": one_of(DEAD_LETTER_CAUSES),
    },
    ErasureRequest: {
        "recipient": saying("The whole address.", **_MAILBOX),
        "reason": _ONE_LINE,
        "actor": saying("Who does it; a name that your people know.", **_ONE_LINE),
    },
    FlushRequest: {
        "domain": {"description": "Of the first recipient."},
        "next_hop": {"description": "By its name."},
        "reason": _ONE_LINE,
        "actor": saying("Who does it; a name that your people know.", **_ONE_LINE),
    },
    LoginCodeAnswer: {"outcome": one_of(("sent", "suppressed"))},
    DeliveryAnswer: {"status": one_of(DeliveryStatus)},
    Explanation: {"class": one_of(DeliveryClass)},
    RouteFacts: {"since": {"format": "date-time"}},
    StoredChange: {"verb": one_of((*Verb, "resend")), "status": one_of(DeliveryStatus)},
    Changed: {"status": one_of(DeliveryStatus)},
    Why: {"reason": _ONE_LINE, "actor": saying("Who does it; a name that your people know.", **_ONE_LINE)},
    DeliveryView: {
        "class": one_of(DeliveryClass),
        "source": one_of(Source),
        "guarantee": one_of(Guarantee),
    },
    RecipientView: {"state": one_of(("open", "sent", "failed", "suppressed"))},
    AttemptView: {
        "certainty": one_of(Certainty),
        "phase": one_of(Phase),
        "severity": one_of(Severity),
        "scope": one_of(Scope),
    },
    MalformedView: {
        "state": one_of(("rejected", "replay_waits", "replayed", "refused_again")),
        "intake": one_of(Intake),
        "failure_code": one_of(FailureCode),
    },
    ReplicaView: {
        "state": one_of(("live", "stopped", "lost")),
        "hops_out": {"description": "By the name of the next hop."},
    },
    HopOut: {"since": {"format": "date-time"}},
    Problem: {
        "type": one_of(f"{URN}{code}" for code in (*FailureCode, *HttpCode)),
        "code": one_of((*FailureCode, *HttpCode)),
        "field": {"description": "The path of the wrong member, or the name of a header or query parameter."},
    },
}
"""What is added to the members of a type."""

WHOLE: Final[dict[type, Schema]] = {
    DeliveryRequest: {
        "oneOf": [
            {"properties": {"payload_mode": {"const": mode.value}, "payload": {"$ref": name}}}
            for mode, name in PAYLOADS.items()
        ]
    },
    SendRequest: {
        "anyOf": [having(name, {"type": "string"}) for name in ("text", "body", "html")],
        "not": {
            "required": ["text", "body"],
            "properties": {"text": {"type": "string"}, "body": {"type": "string"}},
        },
    },
    FlushRequest: {
        "oneOf": [
            having("delivery_id", {"type": "string"}),
            having("domain", {"type": "string", "minLength": 1}),
            having("next_hop", {"type": "string", "minLength": 1}),
            having("all", {"const": True}),
        ]
    },
}
"""What is added to a type as a whole."""
