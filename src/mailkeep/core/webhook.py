"""How a webhook is signed and when it is tried again: Standard Webhooks 1.0 (standardwebhooks.com).

Pure: what is signed is the message's id, the instant and the body; one signature for each secret, so that a receiver that
knows the new secret or still the old one can check it.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what the standard puts before each
MIN_SECRET_BYTES: Final = 24
MAX_SECRET_BYTES: Final = 64
"""Bounds of the standard on the key of HMAC-SHA256."""
LADDER_S: Final = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Waits after the first, second, … failure of one event: about three days; the ladder that the standard recommends."""
JITTER: Final = 0.1


def parse_secret(text: str) -> bytes:
    """Return the key in `whsec_<base64>`. Raises ValueError, which does not repeat it."""
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not text.startswith(SECRET_PREFIX) or not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ValueError(
            f"must be {SECRET_PREFIX} and the base64 of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} random bytes; "
            "`mailkeep webhooks secret` makes one"
        )
    return key


def sign(keys: Sequence[bytes], message_id: str, timestamp_s: int, body: bytes) -> str:
    """Return the header `webhook-signature`: one signature for each key."""
    signed = b".".join((message_id.encode(), str(timestamp_s).encode(), body))
    digests = (hmac.digest(key, signed, hashlib.sha256) for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def next_try_s(tries: int, chance: float) -> float | None:
    """Return the wait in seconds after `tries` failures, None when it is given up; `chance` in [0, 1) is the jitter."""
    if tries > len(LADDER_S):
        return None
    return LADDER_S[tries - 1] * (1 + JITTER * (2 * chance - 1))
