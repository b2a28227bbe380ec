"""A deployment of the drill's own: embedded PostgreSQL, a sinkhole and replicas, each a process, all gone at the end."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from mailkeep.drill.queue_persistence import DrillError
from mailkeep.drill.replica_api import ReplicaApi
from mailkeep.sinkhole.capture import read_capture_file
from mailkeep.sinkhole.mode_source import write_mode_file
from mailkeep.sinkhole.script import parse_mode
from mailkeep.store.embedded import start_postgres

MODE_FILE: Final = "sinkhole.mode"
CAPTURE_FILE: Final = "sinkhole.jsonl"
STOP_S: Final = 10.0
SERVE: Final = (sys.executable, "-m", "mailkeep", "serve")
LOGGED_CHARS: Final = 2000


class LocalDeployment:
    """`replica_count` processes of `serve` over one database. Made by `local_deployment`."""

    def __init__(
        self, folder: Path, dsn: str, replica_count: int, serve: Sequence[str], stack: ExitStack
    ) -> None:
        self._folder = folder
        self._serve = tuple(serve)
        self._stack = stack
        write_mode_file(folder / MODE_FILE, parse_mode("defer"))
        sink_port, *self._ports = _free_ports(1 + replica_count)
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MAIL_")},
            "MAIL_POSTGRES_DSN": dsn,
            "MAIL_POSTGRES_POOL_SIZE": "4",
            "MAIL_SMTP_MODE": "smtp",
            "MAIL_SMTP_ADDR": f"127.0.0.1:{sink_port}",
            "MAIL_SMTP_TLS": "none",
            "MAIL_SMTP_FROM_EMAIL": "drill@sinkhole.test",
            "MAIL_SINKHOLE_ADDR": f"127.0.0.1:{sink_port}",
            "MAIL_RETRY_LADDER_TRANSACTIONAL": "1h",
            "MAIL_LOG_FORMAT": "json",
        }
        sinkhole = (sys.executable, "-m", "mailkeep", "sinkhole", "run", "--port", str(sink_port), "--json")
        files = ("--mode-file", str(folder / MODE_FILE), "--capture-file", str(folder / CAPTURE_FILE))
        self._spawn("sinkhole", (*sinkhole, *files), {})
        self._processes = [self._start_replica(index) for index in range(replica_count)]
        self.replicas = tuple(ReplicaApi(f"http://127.0.0.1:{port}") for port in self._ports)

    def set_mode(self, mode: str) -> None:
        """Write the mode to the sinkhole's file."""
        try:
            write_mode_file(self._folder / MODE_FILE, parse_mode(mode))
        except OSError as fault:
            raise DrillError(f"the sinkhole's mode can't be written: {fault.strerror}") from fault

    def kill(self, index: int) -> None:
        """Kill a replica and reap it."""
        self._processes[index].kill()
        self._processes[index].wait(STOP_S)

    def replace(self, index: int) -> None:
        """Start another one in its place."""
        self._processes[index] = self._start_replica(index)

    def copies(self, recipient: str) -> int:
        """Count the lines of the sinkhole's capture."""
        file = self._folder / CAPTURE_FILE
        return sum(recipient in line.recipients for line in read_capture_file(file)) if file.exists() else 0

    def words(self) -> str:
        """Return the end of what every process said, for a failure."""
        files = sorted(self._folder.glob("*.log"))
        return "\n".join(
            f"-- {file.name}\n{file.read_text(errors='replace')[-LOGGED_CHARS:]}" for file in files
        )

    def _start_replica(self, index: int) -> "subprocess.Popen[bytes]":
        address = {"MAIL_INTERNAL_HTTP_ADDR": f"127.0.0.1:{self._ports[index]}"}
        return self._spawn(f"replica-{index + 1}", self._serve, address)

    def _spawn(self, name: str, command: Sequence[str], environ: dict[str, str]) -> "subprocess.Popen[bytes]":
        with (self._folder / f"{name}.log").open("ab") as log:
            # A session of its own: Ctrl-C reaches the drill alone, which parks the sinkhole and stops the rest in order.
            process = subprocess.Popen(  # noqa: S603 - our own commands
                command, env=self._environ | environ, stdout=log, stderr=log, start_new_session=True
            )
        self._stack.callback(_stop, process)
        return process


@contextmanager
def local_deployment(
    folder: Path, *, replica_count: int = 3, serve: Sequence[str] = SERVE
) -> Iterator[LocalDeployment]:
    """Run a deployment in `folder` and stop all of it at the end. Raises `EmbeddedError`."""
    with ExitStack() as stack:
        postgres = start_postgres(folder)
        stack.callback(postgres.stop)
        yield LocalDeployment(folder, postgres.dsn, replica_count, serve, stack)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_S)


def _free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on; taken together, so that they differ."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]
