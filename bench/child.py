"""A process of the bench's own, spawned, with a pipe to it: what it costs can be told apart from what the peer costs."""

import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from bench.errors import BenchError


class Child:
    """The process of `run(pipe, *arguments)`; it starts with the `with` and ends with it."""

    def __init__(self, run: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, self._theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(run, self._theirs, *arguments), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()
        self.ready: Any = self.receive()
        """What the process said first."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()

    @property
    def pid(self) -> int:
        """Its process id, the root of what it costs."""
        assert self._process.pid is not None
        return self._process.pid

    def ask(self, question: object) -> Any:
        """Return the answer. Raises `BenchError` if the process failed."""
        self.send(question)
        return self.receive()

    def send(self, word: object) -> None:
        """Say something that is answered later, or never."""
        self._pipe.send(word)

    def said(self, timeout_s: float) -> bool:
        """Wait until the process says something, at most `timeout_s`."""
        return self._pipe.poll(timeout_s)

    def receive(self) -> Any:
        """Return what it says next. Raises `BenchError` if the process failed."""
        try:
            return self._pipe.recv()
        except EOFError:
            raise BenchError(
                f"{self._process.name} of the bench failed; its traceback stands above"
            ) from None


def _run(run: Callable[..., None], pipe: Connection, *arguments: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bench's own affair; it ends us
    run(pipe, *arguments)
    with suppress(EOFError):
        pipe.recv()  # alive, so that its CPU can be read, until the bench ends it
