"""The peer Mailkeep: `mailkeep serve` as its user starts it, on embedded PostgreSQL and Redis with their durable defaults."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import asyncpg
import msgspec

from bench.errors import BenchError
from bench.mail import SENDER
from bench.peer import SERVICE, Intake, Peer, free_port
from mailkeep.store.embedded import start_postgres, start_redis

START_TIMEOUT_S: Final = 60.0  # migrations and catalog take a second or two
STOP_TIMEOUT_S: Final = 45.0  # above MAIL_SHUTDOWN_TIMEOUT and the supervisor's margin
LOOK_S: Final = 0.2  # between health checks
MUST_BE_ON: Final = ("fsync", "synchronous_commit", "full_page_writes")
"""With any of these off, accepted mail would not be durable and the comparison worth nothing."""


class Setup(msgspec.Struct, frozen=True):
    """Which Mailkeep; a `parked` one sends nothing (stub mode)."""

    name: str
    intake: Intake
    processes: int
    parked: bool = False


@contextmanager
def mailkeep(folder: Path, sink_port: int, setup: Setup) -> Iterator[Peer]:
    """Run Mailkeep with its data in `folder`, which hands everything to the sink."""
    with ExitStack() as stack:
        postgres = start_postgres(folder)
        stack.callback(postgres.stop)
        port = str(free_port())
        ways = dict.fromkeys((Intake.HTTP_RENDERED, Intake.HTTP_TEMPLATE, Intake.LOGIN_CODE), port)
        ways[Intake.SQL] = postgres.dsn
        roots = {"PostgreSQL": postgres.pid}
        if setup.intake is Intake.STREAM:
            redis = start_redis(folder)
            if redis is None:
                raise BenchError("there is no Redis: pip install 'mailkeep[embedded]'")
            stack.callback(redis.stop)
            ways[Intake.STREAM], roots["Redis"] = str(redis.socket), redis.pid
        environment = _environment(ways, sink_port, "stub" if setup.parked else "smtp")
        facts = {"PostgreSQL": asyncio.run(_durable_version(postgres.dsn))}
        roots[SERVICE] = stack.enter_context(_serving(folder, environment, setup.processes))
        count_parked = (lambda: asyncio.run(_count_suppressed(postgres.dsn))) if setup.parked else None
        yield Peer(setup.name, setup.intake, ways, roots, facts, count_parked)


async def _count_suppressed(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM mail.deliveries WHERE status = 'suppressed'"
        )
    finally:
        await connection.close()
    return count


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


def _environment(ways: dict[Intake, str], sink_port: int, mode: str) -> dict[str, str]:
    """Return an environment without any `MAIL_*` of the caller's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAIL_")}
    sink = f"127.0.0.1:{sink_port}"
    redis = {"MAIL_REDIS_MASTER_ADDR": ways[Intake.STREAM]} if Intake.STREAM in ways else {}
    return (
        inherited
        | redis
        | {
            "MAIL_POSTGRES_DSN": ways[Intake.SQL],
            "MAIL_SMTP_MODE": mode,
            "MAIL_SMTP_ADDR": sink,
            "MAIL_SMTP_TLS": "none",
            "MAIL_SMTP_FROM_EMAIL": SENDER,
            "MAIL_SINKHOLE_ADDR": sink,  # routes the bench's reserved domain
            "MAIL_INTERNAL_HTTP_ADDR": f"127.0.0.1:{ways[Intake.LOGIN_CODE]}",
            "MAIL_LOG_FORMAT": "json",
        }
    )


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
