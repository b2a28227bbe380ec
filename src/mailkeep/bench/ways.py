"""The ways in that a benchmark takes: the internal HTTP listener, and the Redis Stream; with the product's own client."""

import time
from collections.abc import Sequence
from typing import Final, Protocol
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from mailkeep.client import AsyncClient, Mail, RejectedError, UnavailableError
from mailkeep.client.stream import STREAM, stream_fields

MAX_AHEAD: Final = 5_000
"""Commands in the stream that are not read yet: a benchmark that is stopped leaves no more behind than that."""


class RefusedError(Exception):
    """The deployment did not take a mail; the message says why, and what to do."""


class AwayError(Exception):
    """What takes the mail does not answer."""


class Way(Protocol):
    """One way in. `group` mails are handed over at once, by `lanes` in parallel."""

    name: str
    group: int
    lanes: int
    request_ms: list[float]

    async def hand_over(self, mails: Sequence[Mail]) -> list[UUID]:
        """Return the ids of the deliveries. Raises `RefusedError` and `AwayError`."""

    def is_ahead(self, unsettled: int) -> bool:
        """Whether so much is under way that more should wait."""


class HttpWay:
    """One request for each mail, each over a kept connection; `lanes` at a time."""

    name = "http"
    group = 1

    def __init__(self, client: AsyncClient, lanes: int) -> None:
        self._client, self.lanes = client, lanes
        self.request_ms: list[float] = []

    async def hand_over(self, mails: Sequence[Mail]) -> list[UUID]:
        """Send, and time each request."""
        ids = []
        for mail in mails:
            begin_ns = time.monotonic_ns()
            try:
                accepted = await self._client.send(mail)
            except RejectedError as fault:
                raise RefusedError(_refusal(fault)) from fault
            except UnavailableError as fault:
                raise AwayError(str(fault)) from fault
            self.request_ms.append((time.monotonic_ns() - begin_ns) / 1e6)
            ids.append(accepted.delivery_id)
        return ids

    def is_ahead(self, unsettled: int) -> bool:  # noqa: ARG002 - as the protocol has it
        """Never: an answer says that a mail is stored, and the next waits for it."""
        return False


class StreamWay:
    """A hundred entries in one pipeline; the service acknowledges them when they are stored."""

    name = "stream"
    group = 100
    lanes = 1

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.request_ms: list[float] = []

    async def hand_over(self, mails: Sequence[Mail]) -> list[UUID]:
        """Add all entries at once."""
        entries = [stream_fields(mail) for mail in mails]
        pipeline = self._redis.pipeline(transaction=False)
        for fields in entries:
            pipeline.xadd(STREAM, fields)  # type: ignore[arg-type] # redis-py's mapping is invariant
        try:
            await pipeline.execute()
        except (RedisError, OSError) as fault:
            raise AwayError(f"Redis does not take the stream's entries: {fault}") from fault
        return [UUID(fields["delivery_id"]) for fields in entries]

    def is_ahead(self, unsettled: int) -> bool:
        """Whether as much as a stopped benchmark may leave behind is under way."""
        return unsettled >= MAX_AHEAD


def _refusal(fault: RejectedError) -> str:
    if fault.status in {401, 403}:
        return (
            f"the service refuses the token (HTTP {fault.status}); give one of MAIL_INTERNAL_HTTP_TOKENS with"
            " --token-file, or in the environment"
        )
    if fault.code == "reserved_domain":
        return (
            "this deployment has no sinkhole: set MAIL_SINKHOLE_ADDR for `mailkeep serve` and run `mailkeep sinkhole"
            " --mode accept` there; `mailkeep dev` has both"
        )
    return f"the service refuses the mail: {fault}"
