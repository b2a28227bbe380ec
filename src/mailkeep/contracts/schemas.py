"""JSON Schemas (2020-12) of what goes over the wire: the value types as msgspec sees them, and what validation adds to that.

A schema may say less than validation does, never more: everything that is taken fits. What no schema can say (an address
that is valid in every part, an instant in the past, a limit that each deployment sets) stands in the descriptions and is
answered with a problem document or kept as a malformed command.
"""

import re
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import msgspec

from mailkeep.core.address import MAX_TEXT_CHARS
from mailkeep.core.command import (
    CONTENT_TYPE,
    INTAKE_SOURCES,
    KEY,
    LOCALE,
    MAX_SUPERSEDE_KEY_CHARS,
    TEMPLATE_ID,
    TRACEPARENT,
    Attachment,
    DeliveryRequest,
    FailureCode,
    Limits,
    LoginCodeRequest,
    Payload,
    PayloadMode,
)
from mailkeep.core.delivery import Certainty, DeliveryClass, DeliveryStatus, Guarantee, Source
from mailkeep.core.outcome import Phase, Scope, Severity
from mailkeep.intake.http import MAX_COMMANDS, BatchRequest, DeliveryAnswer, LoginCodeAnswer
from mailkeep.intake.problems import URN, HttpCode, Problem
from mailkeep.operator.api import FlushRequest, ListParameters
from mailkeep.operator.queue import (
    WAITING_WORD,
    AttemptView,
    DeliveryView,
    RecipientView,
    ReplicaView,
)

Schema: TypeAlias = dict[str, Any]

COMMAND: Final = "DeliveryCommand"
COMMAND_OF_MODE: Final = {
    PayloadMode.RENDERED: "RenderedCommand",
    PayloadMode.TEMPLATE: "TemplateCommand",
}
PAYLOAD_OF_MODE: Final = {
    PayloadMode.RENDERED: "RenderedPayload",
    PayloadMode.TEMPLATE: "TemplatePayload",
}

_LIMITS: Final = Limits()
_NULL: Final[Schema] = {"type": "null"}
_UNSAFE: Final = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
_UUID_7: Final = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
_BASE64: Final = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"


def whole(pattern: str | re.Pattern[str]) -> str:
    """Return `pattern` as a schema has it: of the whole text."""
    return f"^(?:{pattern if isinstance(pattern, str) else pattern.pattern})$"


def one_of(words: Iterable[str]) -> Schema:
    """Return the schema of one of `words`."""
    return {"enum": [str(word) for word in words]}


ONE_LINE: Final[Schema] = {"pattern": f"^[^{_UNSAFE}]*$"}
BODY: Final[Schema] = {"pattern": r"^[^\x00]*$"}
MAILBOX: Final = "Mailbox"
MAILBOX_SCHEMA: Final[Schema] = {
    "type": "string",
    "description": '`ann@example.org`, `Ann <ann@example.org>` or `"Ann, B." <ann@example.org>`.',
    "format": "mailbox",
    "maxLength": MAX_TEXT_CHARS,
    "pattern": f"^[^{_UNSAFE}]+@[^{_UNSAFE}]+$",
}
_LOCALE: Final[Schema] = {
    "description": "A BCP 47 language tag such as `pt-BR`.",
    "pattern": whole(LOCALE),
}
_INSTANT_MS: Final = "Unix milliseconds"

_COMMAND_TRUTH: Final[dict[str, Schema]] = {
    "source": {"description": "Who asks.", **one_of(sorted(INTAKE_SOURCES))},
    "idempotency_key": {
        "description": "Names the reason of the mail: one key of one source is one delivery.",
        "pattern": whole(KEY),
    },
    "delivery_id": {"description": "An id of your own: a UUIDv7 made today.", "pattern": whole(_UUID_7)},
    "requested_at_ms": {"description": f"When it was asked for, in {_INSTANT_MS}; checked and not used."},
    "class": {
        "description": "How it is kept. Default: `auth` for source `authsession`, else `transactional`.",
        **one_of(DeliveryClass),
    },
    "guarantee": {
        "description": "What an unknown outcome leads to. Default: by class, `MAIL_GUARANTEE_*`.",
        **one_of(Guarantee),
    },
    "send_at_ms": {"description": f"Not before this instant, in {_INSTANT_MS}."},
    "expires_at_ms": {
        "description": f"Not after this instant, in {_INSTANT_MS}: later than now and than `send_at_ms`."
    },
    "supersede_key": {
        "description": "A newer command with the same key and recipients cancels this one while it waits.",
        "minLength": 1,
        "maxLength": MAX_SUPERSEDE_KEY_CHARS,
        **ONE_LINE,
    },
    "traceparent": {
        "description": "W3C Trace Context of the request that this belongs to.",
        "pattern": whole(TRACEPARENT),
    },
}
_PAYLOAD_TRUTH: Final[dict[str, Schema]] = {
    "to": {
        "description": f"With `cc` and `bcc` at most `MAIL_LIMIT_RECIPIENTS` ({_LIMITS.recipients}) addresses.",
        "minItems": 1,
        "items": {"$ref": MAILBOX},
    },
    "cc": {"items": {"$ref": MAILBOX}},
    "bcc": {"items": {"$ref": MAILBOX}},
    "reply_to": {"items": {"$ref": MAILBOX}},
    "attachments": {"description": f"At most `MAIL_LIMIT_ATTACHMENTS` ({_LIMITS.attachments})."},
    "subject": {
        "description": f"At most `MAIL_LIMIT_SUBJECT_CHARS` ({_LIMITS.subject_chars}) characters.",
        **ONE_LINE,
    },
    "text": {"description": f"At most `MAIL_LIMIT_BODY_BYTES` ({_LIMITS.body_bytes}) bytes.", **BODY},
    "html": {
        "description": f"At most `MAIL_LIMIT_BODY_BYTES` ({_LIMITS.body_bytes}) bytes. Alone, a text is made from it.",
        **BODY,
    },
    "template_id": {"description": "A template of the catalog.", "pattern": whole(TEMPLATE_ID)},
    "locale": _LOCALE,
    "variables": {
        "description": "What the template declares. At most `MAIL_LIMIT_VARIABLES_BYTES` "
        f"({_LIMITS.variables_bytes}) bytes, `MAIL_LIMIT_VARIABLES_DEPTH` ({_LIMITS.variables_depth}) levels."
    },
}
_TRUTH: Final[dict[str, dict[str, Schema]]] = {
    kind.__name__: members
    for kind, members in {
        DeliveryRequest: _COMMAND_TRUTH,
        Payload: _PAYLOAD_TRUTH,
        Attachment: {
            "filename": ONE_LINE,
            "content": {
                "description": f"At most `MAIL_LIMIT_ATTACHMENT_BYTES` ({_LIMITS.attachment_bytes}) when decoded.",
                "pattern": whole(_BASE64),
            },
            "content_type": {"pattern": whole(CONTENT_TYPE)},
            "content_id": {"pattern": whole(KEY)},
        },
        LoginCodeRequest: {
            "email": {"$ref": MAILBOX},
            "code": ONE_LINE,
            "locale": _LOCALE,
            "expires_in_s": {"description": "Seconds from acceptance on. Default: `MAIL_AUTH_EXPIRY`."},
            "purpose": ONE_LINE,
        },
        BatchRequest: {
            "commands": {"maxItems": MAX_COMMANDS, "items": {"$ref": COMMAND}},
        },
        ListParameters: {
            "status": {
                "description": "May be repeated. `waiting` is `queued` and `rendered`.",
                "items": {"type": "string", **one_of([*DeliveryStatus, WAITING_WORD])},
            },
            "source": one_of(Source),
            "class": one_of(DeliveryClass),
            "template": {"description": "The id of the template it was rendered from."},
            "recipient": {**MAILBOX_SCHEMA, "description": "The whole address of one recipient."},
            "rule": {"description": "The rule that its last failed attempt matched."},
            "since": {"description": "By the instant in the id; with an offset."},
            "until": {"description": "By the instant in the id; with an offset."},
            "cursor": {"description": "`cursor` of the page before."},
        },
        FlushRequest: {
            "domain": {"description": "Of the first recipient."},
            "next_hop": {"description": "Its name."},
        },
        LoginCodeAnswer: {"outcome": one_of(("sent", "suppressed"))},
        DeliveryAnswer: {"status": one_of(DeliveryStatus)},
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
        ReplicaView: {"state": one_of(("live", "stopped", "lost"))},
        Problem: {
            "type": one_of(f"{URN}{code}" for code in (*FailureCode, *HttpCode)),
            "code": one_of((*FailureCode, *HttpCode)),
            "field": {
                "description": "The path of the wrong member, or the name of a header or query parameter."
            },
        },
    }.items()
}


class _Content(msgspec.Struct, frozen=True):
    """The members of a payload that belong to one mode."""

    description: str
    required: tuple[str, ...]
    optional: tuple[str, ...]


_CONTENT: Final = {
    PayloadMode.RENDERED: _Content(
        "Content that comes ready: a subject with a text, an HTML page or both.",
        ("subject",),
        ("text", "html"),
    ),
    PayloadMode.TEMPLATE: _Content(
        "Content that a template of the catalog makes.", ("template_id", "locale"), ("variables",)
    ),
}


def schemas(kinds: Iterable[type], refs: str) -> dict[str, Schema]:
    """Return the schemas of `kinds` and of what they are made of, by name; `refs` is where they will stand.

    The command stands in it as `DeliveryCommand`, by payload mode.
    """
    _, found = msgspec.json.schema_components([*kinds, DeliveryRequest], ref_template="{name}")
    told = {name: _told(schema, _TRUTH.get(name, {})) for name, schema in found.items()}
    told |= _commands(told.pop(DeliveryRequest.__name__), told.pop(Payload.__name__))
    if flush := told.get(FlushRequest.__name__):
        flush["oneOf"] = [
            *(
                given(name, {"type": "string", "minLength": 1})
                for name in ("delivery_id", "domain", "next_hop")
            ),
            given("all", {"const": True}),
        ]
    return {name: _placed(told[name], refs) for name in sorted(told)}


def given(name: str, schema: Schema) -> Schema:
    """Return the schema of an object that has the member `name`, and has it so."""
    return {"required": [name], "properties": {name: schema}}


def _told(schema: Schema, truth: dict[str, Schema]) -> Schema:
    """Return `schema` with what `truth` adds to its members."""
    schema = {name: part for name, part in schema.items() if name != "title"}
    if "enum" in schema:
        schema = {"type": "string", **schema}
    if "description" in schema:
        schema["description"] = _for_callers(schema["description"])
    if "properties" in schema:
        unknown = truth.keys() - schema["properties"].keys()
        if unknown:
            raise KeyError(f"no such members: {unknown}")
        schema["properties"] = {
            name: _member(name, member, truth.get(name, {})) for name, member in schema["properties"].items()
        }
    return schema


def _member(name: str, member: Schema, truth: Schema) -> Schema:
    options = [option for option in member.get("anyOf", [member]) if option != _NULL]
    optional = "anyOf" in member
    (kind,) = options
    if "$ref" in truth:
        return truth
    told = {**kind, **truth}
    if name.endswith("_at") and kind.get("type") == "string":
        told["format"] = "date-time"
    if not told.get("default", True):
        del told["default"]
    if not optional:
        return told
    if "type" not in kind:
        return {"anyOf": [told, _NULL]}
    if "enum" in told:
        told["enum"] = [*told["enum"], None]
    return {**told, "type": [kind["type"], "null"]}


def _for_callers(docstring: str) -> str:
    """Return a docstring in the words of those who do not read the code."""
    return re.sub(r" \(contract section [0-9.]+\)", "", docstring).replace("None", "null")


def _commands(command: Schema, payload: Schema) -> dict[str, Schema]:
    """Return the command as validation knows it: the payload's members depend on the mode."""
    commands = {
        MAILBOX: MAILBOX_SCHEMA,
        COMMAND: {
            "description": "A command: what to send, to whom, and how it is kept. No member may stand twice.",
            "oneOf": [{"$ref": name} for name in COMMAND_OF_MODE.values()],
        },
    }
    for mode in PayloadMode:
        commands[COMMAND_OF_MODE[mode]] = {
            **command,
            "description": f"A command whose content is `{mode}`.",
            "properties": {
                **command["properties"],
                "payload_mode": {"const": mode.value},
                "payload": {"$ref": PAYLOAD_OF_MODE[mode]},
            },
        }
        commands[PAYLOAD_OF_MODE[mode]] = _payload(payload, mode)
    return commands


def _payload(payload: Schema, mode: PayloadMode) -> Schema:
    needed, foreign = _CONTENT[mode], [name for name in _CONTENT if name is not mode]
    members = dict(payload["properties"])
    for other in foreign:
        members |= dict.fromkeys((*_CONTENT[other].required, *_CONTENT[other].optional), _NULL)
    for name in needed.required:
        members[name] = {**members[name], "type": "string"}
    told = {
        **payload,
        "description": needed.description,
        "properties": members,
        "required": [*payload["required"], *needed.required],
    }
    if mode is PayloadMode.RENDERED:
        told["anyOf"] = [given("text", {"type": "string"}), given("html", {"type": "string"})]
    return told


def _placed(schema: Any, refs: str) -> Any:  # noqa: ANN401 - any part of a schema
    """Return a copy of `schema` whose references lead to `refs`."""
    if isinstance(schema, dict):
        return {
            name: f"{refs}{part}" if name == "$ref" else _placed(part, refs) for name, part in schema.items()
        }
    return [_placed(part, refs) for part in schema] if isinstance(schema, list) else schema
