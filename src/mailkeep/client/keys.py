"""Keys and ids that a caller makes: a key for each call, so that its repeats can't double; an id for each stream entry."""

import re
import secrets
import time
from typing import Final
from uuid import UUID, uuid4

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


def new_key() -> str:
    """Return an idempotency key that nobody used before."""
    return str(uuid4())


def check_key(key: str) -> str:
    """Return `key`. Raises ValueError unless it is 1 to 255 visible ASCII characters."""
    if not _KEY.fullmatch(key):
        raise ValueError("idempotency_key must be 1 to 255 visible ASCII characters")
    return key


def new_delivery_id() -> UUID:
    """Return a UUIDv7 (RFC 9562 section 5.7) of now; Mailkeep takes ids whose time is right to a day."""
    epoch_ms = time.time_ns() // 1_000_000
    version_and_random = 0x7 << 12 | secrets.randbits(12)
    variant_and_random = 0b10 << 62 | secrets.randbits(62)
    return UUID(int=epoch_ms << 80 | version_and_random << 64 | variant_and_random)
