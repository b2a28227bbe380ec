"""API keys as tokens: `mk_` with a public id and a secret of 256 random bits.

The id finds the key, the secret proves it. Only the SHA-256 of the secret is stored: nobody can guess 256 bits, so a slow hash
would protect nothing. Whoever loses a token makes another.
"""

import hashlib
import re
import secrets
from typing import Final

import msgspec

PREFIX: Final = "mk_"
ID_BYTES: Final = 8
SECRET_BYTES: Final = 32
MAX_NAME_CHARS: Final = 100
_TOKEN: Final = re.compile(r"mk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")


class ApiToken(msgspec.Struct, frozen=True):
    """What a token says: which key, and the hash of the secret that came with it."""

    key_id: str
    secret_hash: bytes


def new_token() -> str:
    """Return a new token."""
    return f"{PREFIX}{secrets.token_hex(ID_BYTES)}_{secrets.token_urlsafe(SECRET_BYTES)}"


def parse_token(text: str) -> ApiToken | None:
    """Return what `text` says, None if it is no token of ours."""
    token = _TOKEN.fullmatch(text)
    return ApiToken(token[1], hashlib.sha256(token[2].encode()).digest()) if token else None
