"""The peer Mailkeep: `mailkeep serve` as its user starts it, on embedded PostgreSQL and Redis with their durable defaults.

Its telemetry is on and goes to a real OTLP receiver; who exports nothing gives no figures.
"""

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

from bench.collector import Collector
from bench.errors import BenchError
from bench.mail import SENDER
from bench.peer import SERVICE, Intake, Peer, free_port
from bench.sink import Sink
from mailkeep.store.embedded import start_postgres, start_redis
from mailkeep.version import __version__

START_TIMEOUT_S: Final = 60.0  # migrations and catalog take a second or two
STOP_TIMEOUT_S: Final = 45.0  # above MAIL_SHUTDOWN_TIMEOUT and the supervisor's margin
OVER_HTTP: Final = (Intake.HTTP_RENDERED, Intake.HTTP_TEMPLATE, Intake.HTTP_BIG, Intake.LOGIN_CODE)
LOOK_S: Final = 0.2  # between health checks
TRACED: Final = 0.05  # what docs/how-to/observe.md tells the user to begin with
MUST_BE_ON: Final = ("fsync", "synchronous_commit", "full_page_writes")
"""With any of these off, accepted mail would not be durable and the comparison worth nothing."""


class Setup(msgspec.Struct, frozen=True):
    """Which Mailkeep; a `parked` one sends nothing (stub mode). `traced` is the share of mail whose traces are exported."""

    name: str
    intake: Intake
    processes: int = 1
    parked: bool = False
    traced: float = TRACED
    environ: dict[str, str] = msgspec.field(default_factory=dict)


@contextmanager
def mailkeep(folder: Path, sink: Sink, setup: Setup) -> Iterator[Peer]:
    """Run Mailkeep with its data in `folder`, which hands everything to the sink."""
    with ExitStack() as stack:
        collector = stack.enter_context(Collector())
        postgres = start_postgres(folder)
        stack.callback(postgres.stop)
        port = str(free_port())
        ways = dict.fromkeys(OVER_HTTP, port)
        ways[Intake.SQL] = postgres.dsn
        roots = {"PostgreSQL": postgres.pid}
        if setup.intake is Intake.STREAM:
            redis = start_redis(folder)
            if redis is None:
                raise BenchError("there is no Redis: pip install 'mailkeep[embedded]'")
            stack.callback(redis.stop)
            ways[Intake.STREAM], roots["Redis"] = str(redis.socket), redis.pid
        environment = _environment(ways, sink, setup) | _telemetry(collector, setup.traced) | setup.environ
        facts = {"PostgreSQL": asyncio.run(_durable_version(postgres.dsn)), "Mailkeep": __version__}
        count_parked = (lambda: asyncio.run(_count_suppressed(postgres.dsn))) if setup.parked else None
        with _serving(folder, environment, setup.processes) as service_pid:
            roots[SERVICE] = service_pid
            yield Peer(
                setup.name,
                setup.intake,
                ways,
                roots,
                facts,
                count_parked,
                measuring={"collector": collector.pid},
                environment=environment,
            )
        facts[f"telemetry, {setup.traced:.0%} of traces"] = _exported(collector, setup)


def _telemetry(collector: Collector, traced: float) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": str(traced),
        "OTEL_METRIC_EXPORT_INTERVAL": "10000",
    }


def _exported(collector: Collector, setup: Setup) -> str:
    """Return what came of the telemetry. Raises `BenchError` if nothing did."""
    received = collector.received()
    if not received.points or not (received.spans or setup.parked):
        raise BenchError("the service exported no telemetry")
    spans = ", ".join(f"{count} {name}" for name, count in received.spans.most_common(3))
    return (
        f"over OTLP/HTTP, in the last run {received.size_bytes / 1e6:.1f} MB, {len(received.points)} metrics every 10 s,"
        f" spans: {spans}"
    )


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


def _environment(ways: dict[Intake, str], sink: Sink, setup: Setup) -> dict[str, str]:
    """Return an environment without any `MAIL_*` and `OTEL_*` of the caller's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAIL_", "OTEL_"))}
    tls = {"MAIL_SMTP_TLS": "starttls", "MAIL_SMTP_TLS_CA_FILE": str(sink.ca_file)}
    redis = {"MAIL_REDIS_MASTER_ADDR": ways[Intake.STREAM]} if Intake.STREAM in ways else {}
    return (
        inherited
        | redis
        | (tls if sink.behaviour.tls else {"MAIL_SMTP_TLS": "none"})
        | {
            "MAIL_POSTGRES_DSN": ways[Intake.SQL],
            "MAIL_SMTP_MODE": "stub" if setup.parked else "smtp",
            "MAIL_SMTP_ADDR": f"127.0.0.1:{sink.port}",
            "MAIL_SMTP_FROM_EMAIL": SENDER,
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
