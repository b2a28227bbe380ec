"""A deployment of the drill's own: embedded PostgreSQL, a sinkhole and replicas, each a process, all gone at the end.

A watcher kills each process if the drill itself dies, however it dies. Redis comes along where one can be had and is wanted.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from mailkeep.drill.replica_api import ReplicaApi
from mailkeep.drill.steps import DrillError
from mailkeep.sinkhole.capture import CaptureLine, read_capture_file
from mailkeep.sinkhole.mode_source import write_mode_file
from mailkeep.sinkhole.script import parse_mode
from mailkeep.store.embedded import (
    EmbeddedError,
    EmbeddedPostgres,
    EmbeddedRedis,
    start_postgres,
    start_redis,
)
from mailkeep.store.embedded_process import watched

MODE_FILE: Final = "sinkhole.mode"
CAPTURE_FILE: Final = "sinkhole.jsonl"
SENDER: Final = "drill@sinkhole.test"
STOP_S: Final = 20.0
"""Longer than the replicas' own bound on a stop."""
RESTART_S: Final = 60.0
"""Crash recovery included; the processes of a killed PostgreSQL hold its memory for a moment longer."""
RESTART_LOOK_S: Final = 0.1
"""Between two tries to start it over what its own processes still hold; they leave by themselves and nothing tells of it."""
SERVE: Final = (sys.executable, "-m", "mailkeep", "serve")
LOGGED_CHARS: Final = 2000


class Spawned:
    """One process, with its words in `log`; it is killed when the drill dies."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self._resources = ExitStack()
        with log.open("ab") as words:
            # A session of its own: Ctrl-C reaches the drill alone, which ends the rest in order.
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                command, env=environ, stdout=words, stderr=words, start_new_session=True
            )
        try:
            self._resources.enter_context(watched(self._process.pid, signal.SIGKILL))
        except BaseException:  # an interruption as well: nobody else knows of it yet
            self._process.kill()
            raise

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it is gone; then its watcher is, too, since the number may be somebody else's."""
        if self._process.poll() is None:
            return False
        self._resources.close()
        return True

    def send(self, number: signal.Signals) -> None:
        """Send it `number`, if it still runs."""
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it `number` and reap it; whoever stays for `STOP_S`, and who is frozen, is killed."""
        self.send(number)
        self.send(signal.SIGCONT)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S)
        self._resources.close()


class LocalDeployment:
    """`replica_count` processes of `serve` over one database. Made by `local_deployment`."""

    def __init__(
        self,
        folder: Path,
        replica_count: int,
        serve: Sequence[str],
        stack: ExitStack,
        *,
        environ: Mapping[str, str],
        mode: str,
        with_redis: bool,
    ) -> None:
        self._folder = folder
        self._serve = tuple(serve)
        write_mode_file(folder / MODE_FILE, parse_mode(mode))
        self._postgres: EmbeddedPostgres = start_postgres(folder)
        stack.callback(self._stop_postgres)
        self.dsn = self._postgres.dsn
        self._redis: EmbeddedRedis | None = start_redis(folder) if with_redis else None
        stack.callback(self._stop_redis)
        self.redis_socket = self._redis.socket if self._redis else None
        sink_port, *self._ports = _free_ports(1 + replica_count)
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MAIL_")},
            "MAIL_POSTGRES_DSN": self.dsn,
            "MAIL_POSTGRES_POOL_SIZE": "4",
            "MAIL_SMTP_MODE": "smtp",
            "MAIL_SMTP_ADDR": f"127.0.0.1:{sink_port}",
            "MAIL_SMTP_TLS": "none",
            "MAIL_SMTP_FROM_EMAIL": SENDER,
            "MAIL_SINKHOLE_ADDR": f"127.0.0.1:{sink_port}",
            "MAIL_LOG_FORMAT": "json",
            **({"MAIL_REDIS_MASTER_ADDR": str(self.redis_socket)} if self.redis_socket else {}),
            **environ,
        }
        sinkhole = (
            sys.executable,
            "-m",
            "mailkeep",
            "sinkhole",
            "run",
            "--port",
            str(sink_port),
            "--http",
            "off",
            "--json",
        )
        files = ("--mode-file", str(folder / MODE_FILE), "--capture-file", str(folder / CAPTURE_FILE))
        stack.callback(Spawned((*sinkhole, *files), self._environ, folder / "sinkhole.log").end)
        self.processes: list[Spawned] = []
        stack.callback(self._stop_all)
        for index in range(replica_count):
            self.processes.append(self._start_replica(index))
        self.replicas = tuple(ReplicaApi(f"http://127.0.0.1:{port}") for port in self._ports)

    @property
    def ports(self) -> tuple[int, ...]:
        """Where the replicas listen."""
        return tuple(self._ports)

    def set_mode(self, mode: str) -> None:
        """Write the mode to the sinkhole's file."""
        try:
            write_mode_file(self._folder / MODE_FILE, parse_mode(mode))
        except OSError as fault:
            raise DrillError(f"the sinkhole's mode can't be written: {fault.strerror}") from fault

    def kill(self, index: int) -> None:
        """Kill a replica and reap it."""
        self.processes[index].end(signal.SIGKILL)

    def replace(self, index: int) -> None:
        """Start another one in its place."""
        self.processes[index] = self._start_replica(index)

    def restart_postgres(self) -> None:
        """Kill PostgreSQL, and start it again over what it had committed. Raises `DrillError`."""
        with suppress(ProcessLookupError):
            os.kill(self._postgres.pid, signal.SIGKILL)
        self._stop_postgres()
        ends_at = time.monotonic() + RESTART_S
        while True:
            try:
                self._postgres = start_postgres(self._folder)
                return
            except EmbeddedError as fault:
                if time.monotonic() > ends_at:
                    raise DrillError(f"PostgreSQL did not come back: {fault}") from fault
            time.sleep(RESTART_LOOK_S)

    def restart_redis(self) -> None:
        """Stop Redis, which writes out what it acknowledged, and start it again. Raises `DrillError`."""
        self._stop_redis()
        try:
            self._redis = start_redis(self._folder)
        except EmbeddedError as fault:
            raise DrillError(f"Redis did not come back: {fault}") from fault

    def captured(self) -> list[CaptureLine]:
        """Return what the sinkhole took."""
        file = self._folder / CAPTURE_FILE
        return list(read_capture_file(file)) if file.exists() else []

    def copies(self, recipient: str) -> int:
        """Count the lines of the sinkhole's capture."""
        return sum(recipient in line.recipients for line in self.captured())

    def words(self) -> str:
        """Return the end of what every process said, for a failure."""
        files = sorted(self._folder.glob("*.log"))
        return "\n".join(f"-- {file.name}\n{_end_of(file)}" for file in files)

    def _start_replica(self, index: int) -> Spawned:
        address = {"MAIL_INTERNAL_HTTP_ADDR": f"127.0.0.1:{self._ports[index]}"}
        return Spawned(self._serve, self._environ | address, self._folder / f"replica-{index + 1}.log")

    def _stop_postgres(self) -> None:
        self._postgres.stop()

    def _stop_redis(self) -> None:
        if self._redis is not None:
            self._redis.stop()

    def _stop_all(self) -> None:
        # Told at once, then waited for one after another.
        for process in self.processes:
            process.send(signal.SIGCONT)
            process.send(signal.SIGTERM)
        for process in self.processes:
            process.end()


@contextmanager
def local_deployment(
    folder: Path,
    *,
    replica_count: int = 3,
    serve: Sequence[str] = SERVE,
    environ: Mapping[str, str] | None = None,
    mode: str = "defer",
    with_redis: bool = False,
) -> Iterator[LocalDeployment]:
    """Run a deployment in `folder` and stop all of it at the end. Raises `EmbeddedError`.

    `environ` are settings beyond those that make it one; `mode` is the sinkhole's first one.
    """
    with ExitStack() as stack:
        settings = {"MAIL_RETRY_LADDER_TRANSACTIONAL": "1h"} if environ is None else environ
        yield LocalDeployment(
            folder, replica_count, serve, stack, environ=settings, mode=mode, with_redis=with_redis
        )


def _end_of(file: Path) -> str:
    with file.open("rb") as words:
        words.seek(max(file.stat().st_size - LOGGED_CHARS, 0))
        return words.read().decode(errors="replace")


def _free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on; taken together, so that they differ."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]
