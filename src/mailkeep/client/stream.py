"""The stream producer: mail by the Redis Stream `mail:delivery_commands`, over the caller's own redis-py client.

Nobody waits for the answer: what Mailkeep can't take is kept as a malformed command for its operators. An error of Redis
leaves open whether the entry was added; adding the same `fields` again is harmless, since they hold the key.
"""

import time
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from mailkeep.client.keys import new_delivery_id, new_key
from mailkeep.client.mail import AnyMail, command, to_json

STREAM: Final = "mail:delivery_commands"
SOURCE: Final = "notification"


def stream_fields(mail: AnyMail) -> dict[str, str]:
    """Return the fields of the stream entry for `mail`, with a delivery id and a key of its own if it has none."""
    members = command(mail)
    payload = members.pop("payload")
    defaults = {
        "source": SOURCE,
        "idempotency_key": new_key(),
        "delivery_id": str(new_delivery_id()),
        "requested_at_ms": time.time_ns() // 1_000_000,
    }
    return {
        name: str(value) for name, value in {**defaults, **members, "payload_json": to_json(payload)}.items()
    }


@dataclass(frozen=True, slots=True)
class Added:
    """The entry is in the stream. The id is the delivery's unless an earlier command had the same key."""

    delivery_id: UUID
    entry_id: str


class StreamProducer:
    """Adds mail to the stream by `redis`, a client of redis-py.

    `max_length` caps the stream (approximately); a cap that Mailkeep does not keep up with throws mail away, so it is for
    a Redis whose memory matters more.
    """

    def __init__(self, redis: Any, *, stream: str = STREAM, max_length: int | None = None) -> None:  # noqa: ANN401 - duck-typed, redis-py is not required
        self._redis = redis
        self._stream = stream
        self._max_length = max_length

    def add(self, mail: AnyMail) -> Added:
        """Add one mail. Raises what the Redis client raises."""
        fields = stream_fields(mail)
        return _added(fields, self._xadd(fields))

    async def add_async(self, mail: AnyMail) -> Added:
        """Do the same with a client of `redis.asyncio`."""
        fields = stream_fields(mail)
        return _added(fields, await self._xadd(fields))

    def _xadd(self, fields: dict[str, str]) -> Any:  # noqa: ANN401 - an id, or an awaitable of one
        return self._redis.xadd(self._stream, fields, maxlen=self._max_length, approximate=True)


def _added(fields: dict[str, str], entry_id: bytes | str) -> Added:
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    return Added(UUID(fields["delivery_id"]), text)
