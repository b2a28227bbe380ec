"""One meaning of "the same command": the fingerprint that is stored beside an idempotency key."""

import hashlib

import msgspec

from mailkeep.core.command import Command

_ENCODER = msgspec.msgpack.Encoder(order="deterministic")


def fingerprint(command: Command, hash_key: bytes) -> bytes:
    """Return 16 bytes that are equal for equal commands; keyed, so that a six-digit code can't be guessed from it.

    `hash_key` is the deployment's own (at most 64 bytes).
    """
    return hashlib.blake2b(_ENCODER.encode(command), digest_size=16, key=hash_key).digest()


def address_hash(address: str, hash_key: bytes) -> bytes:
    """Return 12 bytes by which a recipient is found although no address is stored beside the delivery.

    Operators look deliveries up by it, and intake and claims the suppression list; upper and lower case are one.
    """
    return hashlib.blake2b(address.lower().encode(), digest_size=12, key=hash_key).digest()
