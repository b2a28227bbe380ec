"""The AsyncAPI 3 document of the Redis Stream: as a file `api/delivery-commands-asyncapi.yaml`.

An entry of the stream is a flat map of strings; the document shows it as an object. Nobody answers: a command that can't be
taken is kept as a malformed command, and each failure code is shown with an entry that meets it.
"""

from typing import Final

from mailkeep.contracts.examples import COMMANDS, KEY, REFUSALS, Refusal, stream_entry
from mailkeep.contracts.openapi import API_VERSION
from mailkeep.contracts.schemas import not_null, schemas
from mailkeep.contracts.truth import COMMAND, PAYLOADS, Schema, one_of, whole
from mailkeep.core.command import FailureCode
from mailkeep.intake.problems import make_problem
from mailkeep.intake.stream import GROUP, STREAM
from mailkeep.intake.stream_entry import INSTANTS, MAX_DIGITS, OPTIONAL, PAYLOAD, REQUIRED_OF_STREAM

SCHEMAS: Final = "#/components/schemas/"
_MESSAGE: Final = "deliveryCommand"
_CHANNEL: Final = "deliveryCommands"
_ENTRY: Final = "DeliveryCommandEntry"

_INFO: Final = {
    "title": "Mailkeep, delivery commands",
    "version": API_VERSION,
    "description": f"""\
Producers add entries by `XADD {STREAM} * field value …`. All replicas share the consumer group `{GROUP}`; an entry is
acknowledged after PostgreSQL committed what became of it: a delivery, a duplicate of one, or a malformed command. Acknowledged entries
stay in the stream; trimming it is the producers' business.

One key of one source is one delivery, whichever way it came in, so an entry that was added twice is harmless.

A command that can't be taken is kept in `mail.malformed_commands` with its failure code, logged as `stream command rejected`,
counted in `mail.stream_commands.malformed`, and never stops the stream.

Each example is executed as a test, with a `delivery_id` made at that moment.
""",
    "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
}


def asyncapi() -> Schema:
    """Return the document."""
    return {
        "asyncapi": "3.0.0",
        "info": _INFO,
        "defaultContentType": "application/json",
        "servers": {
            "redis": {
                "host": "127.0.0.1:6379",
                "protocol": "redis",
                "description": "The Redis at `MAIL_REDIS_MASTER_ADDR`, or the master that `MAIL_REDIS_SENTINEL_ADDRS` know.",
            }
        },
        "channels": {
            _CHANNEL: {
                "address": STREAM,
                "description": "A Redis Stream.",
                "messages": {_MESSAGE: {"$ref": f"#/components/messages/{_MESSAGE}"}},
            }
        },
        "operations": {
            "takeDelivery": {
                "action": "receive",
                "summary": "Mailkeep takes a command.",
                "channel": {"$ref": f"#/channels/{_CHANNEL}"},
                "messages": [{"$ref": f"#/channels/{_CHANNEL}/messages/{_MESSAGE}"}],
            }
        },
        "components": {
            "messages": {_MESSAGE: _message()},
            "schemas": _schemas(),
        },
        "x-malformed-commands": {code.value: _malformed(code) for code in FailureCode},
    }


def _message() -> Schema:
    return {
        "title": "Delivery command",
        "summary": "One entry: its fields by name, each a string.",
        "contentType": "application/json",
        "payload": {"$ref": f"{SCHEMAS}{_ENTRY}"},
        "examples": [
            {"name": name, "payload": stream_entry(command, KEY if name == "rendered" else f"{KEY}-{name}")}
            for name, command in COMMANDS.items()
        ],
    }


def _schemas() -> dict[str, Schema]:
    """Return the schemas of an entry and of the JSON text in it."""
    found = schemas((), SCHEMAS)
    return {
        _ENTRY: _entry(found.pop(COMMAND)),
        "FailureCode": {"type": "string", **one_of(FailureCode)},
        **found,
    }


def _entry(command: Schema) -> Schema:
    """Return the schema of a command as flat strings."""
    members = command["properties"]
    fields = {
        name: _field(name, members[name]) for name in (*REQUIRED_OF_STREAM, *OPTIONAL) if name in members
    }
    return {
        "description": "A command as flat fields.",
        "type": "object",
        "properties": fields | {PAYLOAD: {"type": "string", "contentMediaType": "application/json"}},
        "required": list(REQUIRED_OF_STREAM),
        "additionalProperties": False,
        "oneOf": [
            {
                "properties": {
                    "payload_mode": {"const": mode.value},
                    PAYLOAD: {"contentSchema": {"$ref": f"{SCHEMAS}{name}"}},
                }
            }
            for mode, name in PAYLOADS.items()
        ],
    }


def _field(name: str, member: Schema) -> Schema:
    if name in INSTANTS:
        digits = whole(f"[0-9]{{1,{MAX_DIGITS}}}")
        return {"type": "string", "description": member["description"], **digits}
    return {keyword: part for keyword, part in not_null(member).items() if keyword != "default"}


def _malformed(code: FailureCode) -> Schema:
    """Return what `code` means, and an entry that meets it."""
    refusal = next((refusal for refusal in REFUSALS if refusal.code is code), _NO_JSON)
    entry = stream_entry(refusal.command, refusal.key or f"{KEY}-{code}")
    if refusal is _NO_JSON:
        entry[PAYLOAD] = '{"to": ["ann@example.org"],'
    return {
        "summary": make_problem(code, "").title,
        "field": refusal.field,
        "example": entry,
    }


_NO_JSON: Final = Refusal(
    FailureCode.INVALID_JSON,
    PAYLOAD,
    "is not valid JSON: Expecting property name enclosed in double quotes at character 27",
    COMMANDS["rendered"],
)
