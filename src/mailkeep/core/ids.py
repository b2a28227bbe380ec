"""Delivery ids: UUIDv7, so that they sort by time and the store can partition by them."""

from uuid import UUID

import uuid_utils


def new_id(now_s: float) -> UUID:
    """Return a new UUIDv7 for the instant `now_s` (Unix seconds, by the database's clock)."""
    return UUID(int=uuid_utils.uuid7(nanoseconds=int(now_s * 1_000_000_000)).int)
