"""The peer Mailkeep: `mailkeep serve` as its user starts it, on an embedded PostgreSQL with its durable defaults."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import asyncpg

from bench.errors import BenchError
from bench.mail import SENDER
from bench.peer import Intake, Peer, free_port
from mailkeep.store.embedded import start_postgres

START_TIMEOUT_S: Final = 60.0  # migrations and catalog take a second or two
STOP_TIMEOUT_S: Final = 45.0  # above MAIL_SHUTDOWN_TIMEOUT and the supervisor's margin
LOOK_S: Final = 0.2  # between health checks
MUST_BE_ON: Final = ("fsync", "synchronous_commit", "full_page_writes")
"""With any of these off, accepted mail would not be durable and the comparison worth nothing."""


@contextmanager
def mailkeep(folder: Path, sink_port: int, intake: Intake, processes: int) -> Iterator[Peer]:
    """Run Mailkeep with its data in `folder`, which hands everything to the sink."""
    postgres = start_postgres(folder)
    try:
        facts = {"PostgreSQL": asyncio.run(_durable_version(postgres.dsn))}
        port = free_port()
        with _serving(folder, _environment(postgres.dsn, port, sink_port), processes) as pid:
            name = "Mailkeep" if intake is Intake.HTTP_RENDERED else "Mailkeep template"
            yield Peer(name, intake, port, (pid, postgres.pid), facts)
    finally:
        postgres.stop()


async def _durable_version(dsn: str) -> str:
    """Return PostgreSQL's version and what makes it durable. Raises `BenchError` if it is not."""
    connection = await asyncpg.connect(dsn)
    try:
        values = {name: await connection.fetchval(f"show {name}") for name in (*MUST_BE_ON, "server_version")}
    finally:
        await connection.close()
    if any(values[name] != "on" for name in MUST_BE_ON):
        raise BenchError(f"PostgreSQL is not durable: {values}")
    return f"{values['server_version']} ({', '.join(f'{name} on' for name in MUST_BE_ON)})"


def _environment(dsn: str, port: int, sink_port: int) -> dict[str, str]:
    """Return an environment without any `MAIL_*` of the caller's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAIL_")}
    sink = f"127.0.0.1:{sink_port}"
    return inherited | {
        "MAIL_POSTGRES_DSN": dsn,
        "MAIL_SMTP_MODE": "smtp",
        "MAIL_SMTP_ADDR": sink,
        "MAIL_SMTP_TLS": "none",
        "MAIL_SMTP_FROM_EMAIL": SENDER,
        "MAIL_SINKHOLE_ADDR": sink,  # routes the bench's reserved domain
        "MAIL_INTERNAL_HTTP_ADDR": f"127.0.0.1:{port}",
        "MAIL_LOG_FORMAT": "json",
    }


@contextmanager
def _serving(folder: Path, environment: dict[str, str], processes: int) -> Iterator[int]:
    command = [sys.executable, "-m", "mailkeep", "serve", "--processes", str(processes)]
    log = folder / "serve.log"
    with log.open("wb") as output:
        service = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _await_ready(service, environment)
        yield service.pid
    except BenchError as fault:
        raise BenchError(f"{fault}\nmailkeep serve said last: {_tail(log)}") from fault
    finally:
        service.terminate()
        try:
            service.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()


def _await_ready(service: subprocess.Popen[bytes], environment: dict[str, str]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    check = [sys.executable, "-m", "mailkeep", "healthcheck"]
    while service.poll() is None and time.monotonic() < deadline_s:
        if subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(LOOK_S)
    raise BenchError("mailkeep serve did not start")


def _tail(log: Path) -> str:
    return " / ".join(log.read_text(errors="replace").splitlines()[-3:]) or "no output"
