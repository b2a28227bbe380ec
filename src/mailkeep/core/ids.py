"""Delivery ids: UUIDv7, so that they sort by time and the store can partition by them.

Each message needs its id as text several times over, so that both ways are msgspec's: measured, 2.3 instead of 6.3 µs from a
text, 0.3 instead of 3.6 µs to one.
"""

from typing import Final
from uuid import UUID

import msgspec
import uuid_utils

_ENCODE: Final = msgspec.json.Encoder().encode


def new_id(now_s: float) -> UUID:
    """Return a new UUIDv7 for the instant `now_s` (Unix seconds, by the database's clock)."""
    return read_id(str(uuid_utils.uuid7(nanoseconds=int(now_s * 1_000_000_000))))


def read_id(text: str) -> UUID:
    """Return the id that `text` writes. Raises `msgspec.ValidationError` (a ValueError) where it writes none."""
    return msgspec.convert(text, UUID)


def id_text(delivery_id: UUID) -> str:
    """Return what `str` returns."""
    return _ENCODE(delivery_id)[1:-1].decode()
