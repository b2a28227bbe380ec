"""Starts `mailkeep` processes quickly: imports everything once and forks for each, with an environment of its own.

A child is a process like any other, in its own session: it runs the command line from `main` on, and dies by `kill -9`. Orders
are lines of JSON on stdin (`environ`, `arguments`, `log`, `errors`, `fault`), answered by `born` and, sooner or later, `ended` on
stdout; at the end of stdin whatever lives is killed. `fault` names a bug of `seeded_faults` to break the child with.

`Nursery` is its other end, in the process of the tests. A start from nothing costs a second of processor time, one from here a
tenth; that it goes well is for the tests that begin a command by its name: demo, drills, `--processes`, clocks, canaries.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

IMPORTED: Final = ("mailkeep.serving", "redis.asyncio", "rich.table")
"""What commands import by and by, beside their own modules. None of it may start a thread: a fork has none but its own."""
BORN: Final = "born"
ENDED: Final = "ended"


class Child:
    """A process of the nursery, with what tests need of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._has_ended = threading.Event()
        self._code: int | None = None

    def end(self, code: int) -> None:
        """Note that it has ended."""
        self._code = code
        self._has_ended.set()

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it lives."""
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit code. Raises `subprocess.TimeoutExpired`."""
        if not self._has_ended.wait(timeout):
            raise subprocess.TimeoutExpired("mailkeep", timeout or 0.0)
        assert self._code is not None
        return self._code

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, if it lives."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The nursery as the tests see it; `close` ends whatever lives. `nursery` has the one of this process."""

    def __init__(self) -> None:
        # A session of its own: what is sent to the tests' group must not end it before its children.
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._children: dict[int, Child] = {}
        self._born: queue.SimpleQueue[Child] = queue.SimpleQueue()
        self._orders = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def bear(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        log: Path,
        *,
        errors: Path | None = None,
        fault: str = "",
    ) -> Child:
        """Start a `mailkeep` process whose output goes to the file `log`; its standard error to `errors`, if given."""
        log.touch()
        order = {
            "arguments": arguments,
            "environ": environ,
            "log": str(log),
            "errors": str(errors or ""),
            "fault": fault,
        }
        with self._orders:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return self._born.get()

    def close(self) -> None:
        """End it and all that it bore."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                word, pid, code = line.split()
                if word == BORN:
                    # A number may come again once its first bearer is gone.
                    child = self._children[int(pid)] = Child(int(pid))
                    self._born.put(child)
                else:
                    self._children.pop(int(pid)).end(int(code))


@functools.cache
def nursery() -> Nursery:
    """Return the nursery of this process, which ends with it."""
    running = Nursery()
    atexit.register(running.close)
    return running


class Ran(NamedTuple):
    """What a command did."""

    code: int
    output: bytes
    errors: bytes


def ran(arguments: Sequence[str], environ: Mapping[str, str]) -> Ran:
    """Run a `mailkeep` command to its end."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        code = nursery().bear(arguments, environ, output, errors=errors).wait()
        return Ran(code, output.read_bytes(), errors.read_bytes())


# -- the nursery itself --------------------------------------------------------------------------------------------


def tend() -> None:
    """Serve orders until there are no more."""
    commands = importlib.import_module("mailkeep.cli")
    own = [f"mailkeep.cli.{module.name}" for module in pkgutil.iter_modules(commands.__path__)]
    for name in (*IMPORTED, *own):
        importlib.import_module(name)
    children: set[int] = set()
    signal.signal(signal.SIGCHLD, lambda *_: _reap(children))
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        # Its birth is told before its end.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if not pid:
            live(order)
        children.add(pid)
        _tell(BORN, pid, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _reap(children: set[int]) -> None:
    # Another signal may come in the middle and reap as well: each child is whose call got it.
    with suppress(ChildProcessError):  # the last one was the other's
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            children.remove(pid)
            _tell(ENDED, pid, os.waitstatus_to_exitcode(status))


def _tell(word: str, pid: int, code: int) -> None:
    os.write(1, f"{word} {pid} {code}\n".encode())


def live(order: dict[str, Any]) -> NoReturn:
    """Be the process that was ordered."""
    code: object = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(_emptied(order["log"]), 1)
        os.dup2(_emptied(order["errors"]) if order["errors"] else 1, 2)
        os.environ.clear()
        os.environ.update(order["environ"])
        if order["fault"]:
            sys.path.append(str(Path(__file__).with_name("acceptance")))
            from seeded_faults import seed

            seed(order["fault"])
        sys.argv = ["mailkeep", *order["arguments"]]
        from mailkeep.__main__ import main

        main()
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    except BaseException:  # noqa: BLE001 - it must not go on as a second nursery
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _emptied(file: str) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)


if __name__ == "__main__":
    tend()
