"""A command that could not be taken, kept as it came, so that it can be looked at, repaired and replayed."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final
from uuid import UUID

import msgspec

from mailkeep.core.command import CommandError, FailureCode

MAX_RAW_BYTES: Final = 256 * 1024
"""Raw bytes kept of one malformed command; longer values are cut, and the command can't be replayed."""
MAX_NAME_BYTES: Final = 128
MAX_FIELDS: Final = 64
MAX_SHOWN_CHARS: Final = 100
"""Of the producer's own delivery id and source, as stored beside the record."""


class Intake(StrEnum):
    """Where a command that nobody waits for came from."""

    STREAM = "stream"
    SQL = "sql"


class Malformed(msgspec.Struct, frozen=True):
    """One malformed command. `raw` is MessagePack of name -> value in bytes; `cut`: not all of it was kept."""

    intake: Intake
    entry_id: str
    failure_code: FailureCode
    field: str
    message: str
    delivery_id: str | None
    source: str | None
    raw: bytes
    cut: bool


def malformed(
    intake: Intake,
    entry_id: str,
    fields: Mapping[bytes, bytes],
    fault: CommandError,
    delivery_id: UUID | None = None,
) -> Malformed:
    """Return the record of a command that `fault` refused; `delivery_id` as its producer was answered, if it was."""
    kept, cut = _bounded(fields)
    return Malformed(
        intake=intake,
        entry_id=entry_id,
        failure_code=fault.code,
        field=fault.field[:MAX_NAME_BYTES].replace("\0", "\\0"),
        message=fault.message,
        delivery_id=str(delivery_id) if delivery_id else _shown(fields.get(b"delivery_id")),
        source=_shown(fields.get(b"source")),
        raw=msgspec.msgpack.encode(kept),
        cut=cut,
    )


def raw_fields(raw: bytes) -> dict[bytes, bytes]:
    """Return the fields of a record's `raw`."""
    return msgspec.msgpack.decode(raw, type=dict[bytes, bytes])


def _bounded(fields: Mapping[bytes, bytes]) -> tuple[dict[bytes, bytes], bool]:
    kept: dict[bytes, bytes] = {}
    left, cut = MAX_RAW_BYTES, len(fields) > MAX_FIELDS
    for name, value in list(fields.items())[:MAX_FIELDS]:
        short_name, short_value = name[:MAX_NAME_BYTES], value[:left]
        cut = cut or len(short_name) < len(name) or len(short_value) < len(value)
        left -= len(short_value)
        kept[short_name] = short_value
    return kept, cut


def _shown(value: bytes | None) -> str | None:
    if value is None:
        return None
    text = value[:MAX_SHOWN_CHARS].decode("ascii", "backslashreplace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)
