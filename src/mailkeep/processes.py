"""Several processes of one service on one machine: each a replica of its own, all listening on the same sockets.

A child that dies is replaced, after a growing pause if it keeps dying; its mail goes on at once with its siblings. The
supervisor holds no state of any message.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import Final

import structlog

RESTART_FIRST_S: Final = 0.5
RESTART_LAST_S: Final = 30.0
SETTLED_S: Final = 10.0
"""Once a child lived this long the configuration is sound: whatever keeps children from starting later may pass."""
STEADY_S: Final = 60.0
"""A child that lived this long starts again without a pause."""
POLL_S: Final = 0.1
HOPELESS: Final = frozenset({69, 78})
"""Exit codes of a child that could not start (EX_UNAVAILABLE, EX_CONFIG): trying again at once can't help."""
STOP_MARGIN_S: Final = 5.0
"""Beyond the children's own shutdown timeout, before they are killed."""


class Supervisor:
    """Runs `count` children of `mailkeep serve`; `run` until SIGINT or SIGTERM.

    `listening`: the sockets they share, by the option that hands each over.
    """

    def __init__(self, count: int, listening: Mapping[str, socket.socket], shutdown_timeout_s: float) -> None:
        self._listening = listening
        self._shutdown_timeout_s = shutdown_timeout_s
        self._children: list[subprocess.Popen[bytes] | None] = [None] * count
        self._started_at = [0.0] * count
        self._pause_s = [0.0] * count
        self._stopping = False
        self._settled = False
        self._exit_code: int | None = None
        self._log = structlog.get_logger("supervisor")

    def run(self) -> int:
        """Supervise until told to stop; returns the exit code.

        0: every child left in order; 69 or 78: the first children could not start, and why they said themselves.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        while not self._stopping:
            for index in range(len(self._children)):
                self._keep(index)
            time.sleep(POLL_S)
        return self._wait()

    def _keep(self, index: int) -> None:
        child = self._children[index]
        lived_s = time.monotonic() - self._started_at[index]
        if child is not None:
            if child.poll() is None:
                self._settled = self._settled or lived_s > SETTLED_S
                return
            self._log.error(
                "process died", pid=child.pid, exit_code=child.returncode, lived_s=round(lived_s, 1)
            )
            self._children[index] = None
            if child.returncode in HOPELESS and not self._settled:
                self._exit_code, self._stopping = child.returncode, True
                return
            self._pause_s[index] = (
                RESTART_FIRST_S
                if lived_s > STEADY_S
                else min(max(self._pause_s[index] * 2, RESTART_FIRST_S), RESTART_LAST_S)
            )
            self._started_at[index] = time.monotonic()
            return
        if lived_s >= self._pause_s[index]:
            self._children[index] = self._spawn()
            self._started_at[index] = time.monotonic()

    def _spawn(self) -> "subprocess.Popen[bytes]":
        numbers = {option: listening.fileno() for option, listening in self._listening.items()}
        command = [sys.executable, "-m", "mailkeep", "serve", "--supervisor", str(os.getpid())]
        command += [word for option, number in numbers.items() for word in (option, str(number))]
        # A session of its own: Ctrl-C reaches the supervisor alone, which stops the children in order.
        return subprocess.Popen(  # noqa: S603 - our own module
            command, pass_fds=list(numbers.values()), env=os.environ, start_new_session=True
        )

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _wait(self) -> int:
        children = [child for child in self._children if child is not None]
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
        ends_at = time.monotonic() + self._shutdown_timeout_s + STOP_MARGIN_S
        for child in children:
            try:
                child.wait(max(ends_at - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                self._log.error("process did not stop in time and is killed", pid=child.pid)
                child.kill()
                child.wait()
        if self._exit_code is not None:
            return self._exit_code
        return int(any(child.returncode for child in children))
