"""Access tokens for XOAUTH2 and OAUTHBEARER, from a command of the operator's.

The command prints one token on its standard output and ends with 0. It is run without a shell, as a child with a time limit,
beside the event loop; what it says on standard error goes nowhere, since it may hold what must not be logged. A token is
used until its time is over or a server refuses it; callers at the same time share one run.
"""

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from subprocess import DEVNULL, PIPE
from typing import Final

from mailkeep.smtp.next_hop import NextHop

MAX_TOKEN_BYTES: Final = 8 * 1024
"""RFC 4954 section 4.5 lets an AUTH line have 12,288 octets; this, in base64, leaves room for the rest of it."""
FAILURE_S: Final = 1.0
"""How long a run that failed answers for: callers that waited for it don't each wait for one of their own."""
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")


class NoTokenError(Exception):
    """The command gave no token; the message says why and repeats nothing of its output."""


class Tokens:
    """The token of one hop. `clock` is monotonic seconds."""

    __slots__ = (
        "_clock",
        "_command",
        "_failed_until_s",
        "_failure",
        "_limit_s",
        "_lock",
        "_token",
        "_ttl_s",
        "_until_s",
    )

    def __init__(self, hop: NextHop, clock: Callable[[], float] = time.monotonic) -> None:
        self._command = hop.token_command
        self._ttl_s = hop.token_ttl_s
        self._limit_s = hop.timers.auth_s
        self._clock = clock
        self._lock = asyncio.Lock()
        self._token = ""
        self._until_s = 0.0
        self._failure = ""
        self._failed_until_s = 0.0

    async def get(self) -> tuple[str, bool]:
        """Return a token, and whether it was made just now for the caller. Raises `NoTokenError`."""
        async with self._lock:
            if self._token and self._clock() < self._until_s:
                return self._token, False
            if self._clock() < self._failed_until_s:
                raise NoTokenError(self._failure)
            try:
                self._token = await self._run()
            except NoTokenError as fault:
                self._failure, self._failed_until_s = str(fault), self._clock() + FAILURE_S
                raise
            self._until_s = self._clock() + self._ttl_s
            return self._token, True

    def forget(self, token: str) -> None:
        """Do not use `token` again: a server refused it."""
        if token == self._token:
            self._token = ""

    async def _run(self) -> str:
        loop = asyncio.get_running_loop()
        try:
            transport, child = await loop.subprocess_exec(
                _Child, *self._command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, start_new_session=True
            )
        except OSError as fault:
            raise NoTokenError(f"can't be run: {fault.strerror}") from fault
        try:
            async with asyncio.timeout(self._limit_s):
                await child.over.wait()
        except TimeoutError as fault:
            raise NoTokenError(f"took longer than {self._limit_s:g} s") from fault
        finally:
            await _end(transport, child)
        if len(child.output) <= MAX_TOKEN_BYTES and transport.get_returncode():
            raise NoTokenError(f"ended with {transport.get_returncode()}")
        token = child.output.decode("latin-1").strip()
        if len(child.output) > MAX_TOKEN_BYTES or not _TOKEN.fullmatch(token):
            raise NoTokenError("printed no token, or more than one")
        return token


class _Child(asyncio.SubprocessProtocol):
    """What came of the command: `over` when it ended and closed its output, or said too much."""

    def __init__(self) -> None:
        self.output = b""
        self.over = asyncio.Event()
        self.exited = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002 - as the protocol has it
        """Keep what it says, up to the bound."""
        self.output = (self.output + data)[: MAX_TOKEN_BYTES + 1]
        if len(self.output) > MAX_TOKEN_BYTES:
            self.over.set()

    def process_exited(self) -> None:
        """Note that it ended; what it started may still hold its output."""
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as the protocol has it
        """Note that it ended and nobody holds its output."""
        self.over.set()


async def _end(transport: asyncio.SubprocessTransport, child: _Child) -> None:
    """Leave nothing of the command behind, whatever it started."""
    with contextlib.suppress(
        ProcessLookupError, PermissionError
    ):  # it is gone; macOS says the latter of zombies
        os.killpg(transport.get_pid(), signal.SIGKILL)
    await child.exited.wait()
    transport.close()
