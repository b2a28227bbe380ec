"""Mode sources: where the sinkhole learns which mode is in force.

The session asks `current` at each connection, MAIL and RCPT; it never waits: a file is looked at by its stat, Redis is
polled in the background. A source that can't be read, or that holds a word that is no mode, leaves the last mode in force
and says so once. `write_mode_file` and `write_redis_mode` are the other end of the same wires, for the CLI and the drill.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from mailkeep.sinkhole.script import MAX_MODE_CHARS, Mode, ModeName, UnknownModeError, parse_mode

if TYPE_CHECKING:
    from redis.asyncio import Redis

Notice = Callable[[str], None]
"""Takes one line for whoever runs the sinkhole."""

DEFAULT_MODE: Final = Mode(ModeName.DEFER)
MAX_MODE_AGE_S: Final = 30.0
"""A mode that was changed is in force after this long at the latest (while its source can be reached)."""
FRESH_NS: Final = 1_000_000_000
"""A file changed so lately is read again: the clock of file times is coarse, two words may share one stat."""
REDIS_POLL_S: Final = 2.0
REDIS_TIMEOUT_S: Final = 2.0  # connect and reply, each; with the poll well inside MAX_MODE_AGE_S
REDIS_MODE_KEY: Final = "mail:sinkhole:mode"


class ModeSource(Protocol):
    """Knows the mode in force."""

    def current(self) -> Mode:
        """Return the mode in force, at once and without failing."""

    async def start(self) -> None:
        """Begin to follow the source."""

    async def stop(self) -> None:
        """Stop following it."""


class FixedModeSource:
    """The mode that was given; whoever holds the source may assign another."""

    def __init__(self, mode: Mode = DEFAULT_MODE) -> None:
        self.mode = mode

    def current(self) -> Mode:
        """Return the mode."""
        return self.mode

    async def start(self) -> None:
        """Do nothing: there is nothing to follow."""

    async def stop(self) -> None:
        """Do nothing: there is nothing to follow."""


class _LastMode:
    """The last mode that could be read, and the last complaint, so that each is made once."""

    def __init__(self, place: str, initial: Mode, notice: Notice) -> None:
        self.mode = initial
        self._place, self._notice = place, notice
        self._complaint = ""

    def take(self, text: str) -> None:
        try:
            self.mode = parse_mode(text)
        except UnknownModeError:
            self.complain(f"{text[:MAX_MODE_CHARS]!r} is not a mode")
        else:
            self._complaint = ""

    def complain(self, what: str) -> None:
        if what != self._complaint:
            self._notice(f"{self._place}: {what}; the mode stays {self.mode}")
        self._complaint = what


class FileModeSource:
    """The mode written in a file; each look costs one stat."""

    def __init__(self, path: Path, notice: Notice, *, initial: Mode = DEFAULT_MODE) -> None:
        self._path = path
        self._last = _LastMode(str(path), initial, notice)
        self._stat: tuple[int, int, int] | None = None

    def current(self) -> Mode:
        """Return the mode in the file, or the last one that could be read."""
        try:
            stat = self._path.stat()
            identity = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if identity != self._stat:
                self._last.take(_read_start(self._path))
            self._stat = identity if time.time_ns() - stat.st_mtime_ns > FRESH_NS else None
        except (OSError, UnicodeDecodeError) as fault:
            self._stat = None
            self._last.complain(f"can't be read ({type(fault).__name__})")
        return self._last.mode

    async def start(self) -> None:
        """Do nothing: the file is looked at when asked."""

    async def stop(self) -> None:
        """Do nothing: no file is held open."""


class RedisModeSource:
    """The mode in a Redis key, polled every `poll_s` seconds; a missing key or a lost Redis leaves the last mode."""

    def __init__(
        self,
        url: str,
        notice: Notice,
        *,
        key: str = REDIS_MODE_KEY,
        initial: Mode = DEFAULT_MODE,
        poll_s: float = REDIS_POLL_S,
    ) -> None:
        if not 0 < poll_s <= MAX_MODE_AGE_S - 2 * REDIS_TIMEOUT_S:
            raise ValueError("the poll must leave time to keep MAX_MODE_AGE_S")
        self._url, self._key, self._poll_s = url, key, poll_s
        self._last = _LastMode(f"Redis key {key}", initial, notice)
        self._redis: Redis | None = None
        self._polling: asyncio.Task[None] | None = None

    def current(self) -> Mode:
        """Return the mode last read."""
        return self._last.mode

    async def start(self) -> None:
        """Read the key once, so that the first connection meets the right mode, and follow it.

        Raises OSError for a malformed URL; a Redis that is away is none.
        """
        with _as_os_error():
            self._redis = _connect(self._url)
        await self._read(self._redis)
        self._polling = asyncio.create_task(self._poll(self._redis), name="sinkhole mode")

    async def stop(self) -> None:
        """Stop following the key."""
        if self._polling and self._redis:
            self._polling.cancel()
            await asyncio.wait([self._polling])
            await self._redis.aclose()
            self._polling = self._redis = None

    async def _poll(self, redis: "Redis") -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self._read(redis)

    async def _read(self, redis: "Redis") -> None:
        try:
            text = await _read_key(redis, self._key)
        except Exception as fault:  # noqa: BLE001 - the loop's boundary: it is said once, and the next poll tries again
            self._last.complain(f"can't be read ({type(fault).__name__})")
        else:
            if text:
                self._last.take(text)


def write_mode_file(path: Path, mode: Mode) -> None:
    """Put `mode` into the file at `path` in one step: a reader sees the old word or the new one. Raises OSError."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{mode}\n")
        Path(name).chmod(0o644)  # the sinkhole may run as another user
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_mode_file(path: Path) -> Mode:
    """Return the mode in the file at `path`. Raises OSError or `UnknownModeError`."""
    return parse_mode(_read_start(path))


async def write_redis_mode(url: str, mode: Mode, *, key: str = REDIS_MODE_KEY) -> None:
    """Put `mode` into the Redis key. Raises OSError."""
    with _as_os_error():
        async with _connect(url) as redis:
            await redis.set(key, str(mode))


async def read_redis_mode(url: str, *, key: str = REDIS_MODE_KEY) -> Mode | None:
    """Return the mode in the Redis key, None if it isn't set. Raises OSError or `UnknownModeError`."""
    with _as_os_error():
        async with _connect(url) as redis:
            text = await _read_key(redis, key)
    return parse_mode(text) if text else None


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Translate the driver's errors, ValueError for a malformed URL among them, to OSError."""
    from redis.exceptions import RedisError  # noqa: PLC0415 - only those who use Redis load it

    try:
        yield
    except (RedisError, ValueError) as fault:
        raise OSError(f"Redis can't be used ({type(fault).__name__})") from fault


def _read_start(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.read(MAX_MODE_CHARS + 1)  # one more, so that a longer text is no mode


async def _read_key(redis: "Redis", key: str) -> str:
    value = await redis.getrange(key, 0, MAX_MODE_CHARS)
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _connect(url: str) -> "Redis":
    from redis.asyncio import Redis  # noqa: PLC0415 - only those who use Redis load it
    from redis.asyncio.retry import Retry  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415

    return Redis.from_url(
        url,
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),  # the next poll is the retry
    )
