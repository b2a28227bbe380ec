"""Redis as the settings name it: one address, a Unix socket, or whatever master the sentinels agree on.

The client's own retries are off: a blocking read that is silently repeated can leave entries pending under our name, and
its default timeout is shorter than our reads wait. Whoever uses the client reconnects by itself.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from redis.asyncio import Redis, Sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as RedisTimeoutError

from mailkeep.settings import Settings

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 10.0
"""Longer than any read blocks (2 s): a silent connection is given up and made anew."""


class BoundedRedis(Redis):
    """A client whose calls end in time; not by `socket_timeout`, with which a cancellation can get lost before Python 3.12."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as redis-py declares it
        """Run one command. Raises `RedisError`."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call] # redis-py declares no types there
        except TimeoutError:
            raise RedisTimeoutError(f"no answer for {READ_TIMEOUT_S:g} s") from None


Connect = Callable[[], AbstractAsyncContextManager[Redis]]
"""Makes a client with connections of its own, closed when it is left."""


def redis_connector(settings: Settings) -> Connect:
    """Return what makes a client for the configured Redis; `settings.has_redis` says whether there is one."""
    options: dict[str, Any] = {
        "username": settings.redis_username,
        "password": settings.redis_password.reveal() if settings.redis_password else None,
        "db": settings.redis_database,
        "ssl": settings.redis_tls,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "protocol": 2,  # nothing here needs RESP3, and an answer has one shape
        "retry": Retry(NoBackoff(), 0),
    }
    if settings.redis_sentinel_addrs:
        return lambda: _by_sentinels(settings, options)
    address = settings.redis_master_addr
    assert address is not None
    if address.is_socket:
        return lambda: BoundedRedis(unix_socket_path=address.host, **options)
    return lambda: BoundedRedis(host=address.host, port=address.port, **options)


@asynccontextmanager
async def _by_sentinels(settings: Settings, options: dict[str, Any]) -> AsyncIterator[Redis]:
    addresses = [(sentinel.host, sentinel.port) for sentinel in settings.redis_sentinel_addrs]
    asking = {"socket_timeout": CONNECT_TIMEOUT_S, "retry": options["retry"]}
    sentinels = Sentinel(addresses, sentinel_kwargs=asking)  # type: ignore[no-untyped-call] # redis-py declares no types there
    master = sentinels.master_for(settings.redis_sentinel_master, BoundedRedis, **options)
    async with sentinels, master as client:
        yield client
