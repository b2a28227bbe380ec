"""Mode sources: where the sinkhole learns which mode is in force.

The session asks `current` at each connection, MAIL and RCPT; it never waits: a file is looked at by its stat, Redis and SSM
are polled in the background. A source that can't be read, or that holds a word that is no mode, leaves the last mode in
force and says so once. `put` changes the mode where it is written, so that all who follow that place change alike;
`write_mode_file`, `write_redis_mode` and `write_ssm_mode` are the same without a sinkhole, for the CLI and the drill.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

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
SSM_POLL_S: Final = 10.0  # a call costs little, but not nothing
SSM_TIMEOUT_S: Final = 5.0  # connect and reply, each


class ModeSource(Protocol):
    """Knows the mode in force."""

    def current(self) -> Mode:
        """Return the mode in force, at once and without failing."""

    async def put(self, mode: Mode) -> None:
        """Change the mode where it is written; here it is in force at once. Raises OSError."""

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

    async def put(self, mode: Mode) -> None:
        """Take another mode."""
        self.mode = mode

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

    async def put(self, mode: Mode) -> None:
        """Write `mode` into the file. Raises OSError."""
        write_mode_file(self._path, mode)

    async def start(self) -> None:
        """Do nothing: the file is looked at when asked."""

    async def stop(self) -> None:
        """Do nothing: no file is held open."""


class _PolledModeSource(ABC):
    """A mode that is asked for over the network, every `poll_s` seconds; a missing one or a lost server leaves the last."""

    def __init__(self, place: str, notice: Notice, initial: Mode, poll_s: float, look_s: float) -> None:
        if not 0 < poll_s <= MAX_MODE_AGE_S - look_s:
            raise ValueError("the poll must leave time to keep MAX_MODE_AGE_S")
        self._poll_s = poll_s
        self._last = _LastMode(place, initial, notice)
        self._polling: asyncio.Task[None] | None = None

    @abstractmethod
    async def _fetch(self) -> str | None:
        """Return what is written there, None where nothing is."""

    @abstractmethod
    async def _write(self, mode: Mode) -> None:
        """Write `mode` there. Raises OSError."""

    @abstractmethod
    async def _connect(self) -> None:
        """Make ready. Raises OSError for what can never work; a server that is away is none of that."""

    @abstractmethod
    async def _disconnect(self) -> None:
        """Let go of what `_connect` made."""

    def current(self) -> Mode:
        """Return the mode last read."""
        return self._last.mode

    async def put(self, mode: Mode) -> None:
        """Write `mode`; here it is in force at once. Raises OSError."""
        await self._write(mode)
        self._last.take(str(mode))

    async def start(self) -> None:
        """Read once, so that the first connection meets the right mode, and follow it.

        Raises OSError for a place that can't be; a server that is away is none.
        """
        await self._connect()
        await self._read()
        self._polling = asyncio.create_task(self._poll(), name="sinkhole mode")

    async def stop(self) -> None:
        """Stop following it."""
        if self._polling:
            self._polling.cancel()
            await asyncio.wait([self._polling])
            self._polling = None
            await self._disconnect()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self._read()

    async def _read(self) -> None:
        try:
            text = await self._fetch()
        except Exception as fault:  # noqa: BLE001 - the loop's boundary: it is said once, and the next poll tries again
            self._last.complain(f"can't be read ({type(fault).__name__})")
        else:
            if text:
                self._last.take(text)


class RedisModeSource(_PolledModeSource):
    """The mode in a Redis key."""

    def __init__(
        self,
        url: str,
        notice: Notice,
        *,
        key: str = REDIS_MODE_KEY,
        initial: Mode = DEFAULT_MODE,
        poll_s: float = REDIS_POLL_S,
    ) -> None:
        super().__init__(f"Redis key {key}", notice, initial, poll_s, look_s=2 * REDIS_TIMEOUT_S)
        self._url, self._key = url, key
        self._redis: Redis | None = None

    async def _connect(self) -> None:
        with _as_os_error():
            self._redis = _connect(self._url)

    async def _disconnect(self) -> None:
        if self._redis:
            await self._redis.aclose()

    async def _fetch(self) -> str | None:
        assert self._redis is not None
        return await _read_key(self._redis, self._key)

    async def _write(self, mode: Mode) -> None:
        await write_redis_mode(self._url, mode, key=self._key)


class SsmModeSource(_PolledModeSource):
    """The mode in a parameter of the AWS Systems Manager (`/mailkeep/sinkhole/mode`), of type String.

    Region, credentials and endpoint are boto3's own business (`AWS_REGION`, a role, `AWS_ENDPOINT_URL_SSM`). Needs
    `ssm:GetParameter`, and `ssm:PutParameter` to change it.
    """

    def __init__(
        self,
        parameter: str,
        notice: Notice,
        *,
        initial: Mode = DEFAULT_MODE,
        poll_s: float = SSM_POLL_S,
    ) -> None:
        super().__init__(f"SSM parameter {parameter}", notice, initial, poll_s, look_s=2 * SSM_TIMEOUT_S)
        self._parameter = parameter
        self._ssm: Any = None

    async def _connect(self) -> None:
        self._ssm = await asyncio.to_thread(_ssm_client)

    async def _disconnect(self) -> None:
        await asyncio.to_thread(self._ssm.close)

    async def _fetch(self) -> str | None:
        return await asyncio.to_thread(_read_parameter, self._ssm, self._parameter)

    async def _write(self, mode: Mode) -> None:
        await asyncio.to_thread(write_ssm_mode, self._parameter, mode)


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
            async with asyncio.timeout(REDIS_TIMEOUT_S):
                await redis.set(key, str(mode))


async def read_redis_mode(url: str, *, key: str = REDIS_MODE_KEY) -> Mode | None:
    """Return the mode in the Redis key, None if it isn't set. Raises OSError or `UnknownModeError`."""
    with _as_os_error():
        async with _connect(url) as redis:
            text = await _read_key(redis, key)
    return parse_mode(text) if text else None


def write_ssm_mode(parameter: str, mode: Mode) -> None:
    """Put `mode` into the SSM parameter, which is made where there is none. Raises OSError."""
    ssm = _ssm_client()
    with _aws_as_os_error():
        ssm.put_parameter(Name=parameter, Value=str(mode), Type="String", Overwrite=True)


def read_ssm_mode(parameter: str) -> Mode | None:
    """Return the mode in the SSM parameter, None if there is no such parameter. Raises OSError or `UnknownModeError`."""
    ssm = _ssm_client()
    with _aws_as_os_error():
        try:
            text = _read_parameter(ssm, parameter)
        except ssm.exceptions.ParameterNotFound:
            return None
    return parse_mode(text)


def _ssm_client() -> Any:  # noqa: ANN401 - boto3 makes its clients at run time
    try:
        import boto3  # noqa: PLC0415 - only those who use SSM load it
        from botocore.config import Config  # noqa: PLC0415
    except ModuleNotFoundError as fault:
        raise OSError("SSM needs boto3, which is not installed: pip install 'mailkeep[aws]'") from fault
    # One try: the next poll is the retry.
    config = Config(
        connect_timeout=SSM_TIMEOUT_S, read_timeout=SSM_TIMEOUT_S, retries={"total_max_attempts": 1}
    )
    with _aws_as_os_error():
        return boto3.client("ssm", config=config)


def _read_parameter(ssm: Any, parameter: str) -> str:  # noqa: ANN401 - a client of boto3
    match ssm.get_parameter(Name=parameter):
        case {"Parameter": {"Value": str(value)}}:
            return value[: MAX_MODE_CHARS + 1]  # one more, so that a longer text is no mode
        case _:
            raise OSError("SSM can't be used: its answer holds no parameter")


@contextlib.contextmanager
def _aws_as_os_error() -> Iterator[None]:
    """Translate the errors of AWS and its client (no region, no credentials, refused, away, garbage) to OSError."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - only those who use SSM load it

    try:
        yield
    except ClientError as fault:
        code = fault.response.get("Error", {}).get("Code", "no code")
        if code == "ParameterNotFound":
            raise  # the reader's to judge
        raise OSError(f"SSM refuses: {code}") from fault
    except (BotoCoreError, ValueError) as fault:  # ValueError: a malformed endpoint
        raise OSError(f"SSM can't be used: {fault}") from fault


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Translate the driver's errors, ValueError for a malformed URL among them, to OSError."""
    from redis.exceptions import RedisError  # noqa: PLC0415 - only those who use Redis load it

    try:
        yield
    except (RedisError, TimeoutError, ValueError) as fault:
        raise OSError(f"Redis can't be used ({type(fault).__name__})") from fault


def _read_start(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.read(MAX_MODE_CHARS + 1)  # one more, so that a longer text is no mode


async def _read_key(redis: "Redis", key: str) -> str:
    async with asyncio.timeout(REDIS_TIMEOUT_S):
        value = await redis.getrange(key, 0, MAX_MODE_CHARS)
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _connect(url: str) -> "Redis":
    from redis.asyncio import Redis  # noqa: PLC0415 - only those who use Redis load it
    from redis.asyncio.retry import Retry  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415

    return Redis.from_url(
        url,
        socket_timeout=None,  # callers bound the answer: here a cancellation could get lost before Python 3.12
        socket_connect_timeout=REDIS_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),  # the next poll is the retry
    )
