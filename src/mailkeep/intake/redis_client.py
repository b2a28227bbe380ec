"""Redis as the settings name it: one address, a Unix socket, or whatever master the sentinels agree on.

The client's own retries are off: a blocking read that is silently repeated can leave entries pending under our name, and
its default timeout is shorter than our reads wait. Whoever uses the client reconnects by itself.
"""

from collections.abc import Callable
from typing import Any, Final

from redis.asyncio import Redis, Sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mailkeep.settings import Settings

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 10.0
"""Longer than any read blocks (2 s): a silent connection is given up and made anew."""


def redis_connector(settings: Settings) -> Callable[[], Redis] | None:
    """Return what makes a client for the configured Redis, or None if none is configured."""
    options: dict[str, Any] = {
        "username": settings.redis_username,
        "password": settings.redis_password.reveal() if settings.redis_password else None,
        "db": settings.redis_database,
        "socket_timeout": READ_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
    }
    address = settings.redis_master_addr
    if settings.redis_sentinel_addrs:
        sentinels = [(sentinel.host, sentinel.port) for sentinel in settings.redis_sentinel_addrs]
        return lambda: Sentinel(sentinels, socket_timeout=CONNECT_TIMEOUT_S).master_for(  # type: ignore[no-untyped-call] # redis-py declares no types there
            settings.redis_sentinel_master, ssl=settings.redis_tls, **options
        )
    if address is None:
        return None
    if address.is_socket:
        return lambda: Redis(unix_socket_path=address.host, **options)
    return lambda: Redis(host=address.host, port=address.port, ssl=settings.redis_tls, **options)
