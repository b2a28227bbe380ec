"""One entry of the stream as a request: flat string fields in, `DeliveryRequest` out. Pure.

A command from SQL has the same members in one JSON object; `entry_of_json` gives it the flat form, so that both are kept,
shown and replayed alike.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mailkeep.aside import LARGE_BYTES
from mailkeep.core.command import EPOCH_MS_MAX, CommandError, DeliveryRequest, FailureCode, Payload
from mailkeep.intake.body import check_json, decode_json, decode_large, payload_with_files

REQUIRED: Final = ("source", "payload_mode", "payload_json")
REQUIRED_OF_STREAM: Final = (
    "delivery_id",
    "source",
    "payload_mode",
    "idempotency_key",
    "requested_at_ms",
    "payload_json",
)
CLASS: Final = "class"
OPTIONAL: Final = (CLASS, "guarantee", "expires_at_ms", "send_at_ms", "supersede_key", "traceparent")
PAYLOAD: Final = "payload_json"
_RAW_PAYLOAD: Final = PAYLOAD.encode()
_PAYLOAD_OBJECT: Final = "payload"
MAX_DIGITS: Final = len(str(EPOCH_MS_MAX))
INSTANTS: Final = frozenset({"requested_at_ms", "expires_at_ms", "send_at_ms"})
_KNOWN: Final = {name.encode(): name for name in (*REQUIRED_OF_STREAM, *OPTIONAL)}
_PAYLOAD_DECODER: Final = msgspec.json.Decoder(Payload)


def parse_entry(
    fields: Mapping[bytes, bytes], max_bytes: int, required: tuple[str, ...] = REQUIRED_OF_STREAM
) -> DeliveryRequest:
    """Return the request in `fields`. Raises `CommandError`; `max_bytes` bounds each value."""
    values: dict[str, Any] = _texts(fields, max_bytes)
    for name in required:
        if name not in values:
            raise CommandError(FailureCode.MISSING_FIELD, name, "is required")
    del values[PAYLOAD]
    for name in INSTANTS & values.keys():
        values[name] = _instant(name, values[name])
    if CLASS in values:
        values["delivery_class"] = values.pop(CLASS)
    return DeliveryRequest(payload=_payload(fields[_RAW_PAYLOAD]), **values)


def entry_of_json(command: bytes) -> tuple[dict[bytes, bytes], CommandError | None]:
    """Return the flat fields of a command in one JSON object, and what keeps them from being looked at, if anything.

    `payload` becomes `payload_json`, instants their digits; every other member is a string, or null and left out.
    """
    try:
        members = msgspec.json.decode(command, type=dict[str, msgspec.Raw])
    except RecursionError:
        return {b"command": command}, CommandError(FailureCode.INVALID_JSON, "", "is nested too deeply")
    fields: dict[bytes, bytes] = {}
    fault = None
    for name, raw in members.items():
        value = bytes(raw)
        if name == _PAYLOAD_OBJECT:
            fields.setdefault(PAYLOAD.encode(), value)
        elif value[:1] == b'"':
            fields[name.encode()] = msgspec.json.decode(value, type=str).encode()
        elif value != b"null":
            fields[name.encode()] = value
            if name not in INSTANTS:
                fault = CommandError(FailureCode.INVALID_FIELD, name, "must be a string")
    if _PAYLOAD_OBJECT in members and PAYLOAD in members:
        fault = CommandError(FailureCode.INVALID_FIELD, PAYLOAD, "stands for payload; give one of them")
    return fields, fault


def repaired(fields: Mapping[bytes, bytes], repairs: Mapping[str, str | None]) -> dict[bytes, bytes]:
    """Return `fields` with `repairs` made: a text replaces or adds a field, None takes it away."""
    changed = {
        **fields,
        **{name.encode(): text.encode() for name, text in repairs.items() if text is not None},
    }
    for name, text in repairs.items():
        if text is None:
            changed.pop(name.encode(), None)
    return changed


def _payload(data: bytes) -> Payload:
    try:
        if len(data) > LARGE_BYTES:
            return decode_large(data, _PAYLOAD_DECODER, payload_with_files)
        check_json(data)
        return decode_json(data, _PAYLOAD_DECODER)
    except CommandError as fault:
        field = PAYLOAD if fault.code is FailureCode.INVALID_JSON else f"payload.{fault.field}".rstrip(".")
        raise CommandError(fault.code, field, fault.message) from None


def _texts(fields: Mapping[bytes, bytes], max_bytes: int) -> dict[str, str]:
    texts = {}
    for raw_name, raw_value in fields.items():
        name = _KNOWN.get(raw_name)
        if name is None:
            raise CommandError(
                FailureCode.UNKNOWN_FIELD, _shown(raw_name), "is not a field of a delivery command"
            )
        if len(raw_value) > max_bytes:
            raise CommandError(FailureCode.TOO_LARGE, name, f"is larger than {max_bytes} bytes")
        try:
            texts[name] = raw_value.decode()
        except UnicodeDecodeError:
            raise CommandError(FailureCode.INVALID_FIELD, name, "is not UTF-8") from None
    return texts


def _instant(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS and int(text) <= EPOCH_MS_MAX):
        raise CommandError(FailureCode.INVALID_FIELD, name, "must be Unix milliseconds up to the year 9999")
    return int(text)


def _shown(raw_name: bytes) -> str:
    return raw_name[:64].decode("ascii", "backslashreplace")
