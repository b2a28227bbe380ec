"""`mailkeep bench`: how much mail this deployment carries, measured with mail for the sinkhole.

Exit codes: 0 every mail was sent, 1 one was not, or there is no sinkhole, 2 wrong usage, 69 a server is away, 78 bad
configuration, 130 interrupted (what was under way is awaited, told and cleaned up all the same).
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from mailkeep.bench.benchmark import Plan, Progress
    from mailkeep.bench.figures import Findings, Percentiles
    from mailkeep.bench.ways import Way
    from mailkeep.settings import Settings

MAX_MESSAGES: Final = 200_000
"""What is known of each is kept in memory."""
MAX_SECONDS: Final = 3600.0
MAX_CONNECTIONS: Final = 64
"""As many as the client opens."""
EXIT_INTERRUPTED: Final = 130
DAY_S: Final = 86_400


class Via(StrEnum):
    """A way in."""

    HTTP = "http"
    STREAM = "stream"


def bench(
    *,
    messages: Annotated[int, typer.Option(min=1, max=MAX_MESSAGES, help="Mails to send at most.")] = 2000,
    seconds: Annotated[float, typer.Option(min=1, max=MAX_SECONDS, help="Seconds to send at most.")] = 30.0,
    via: Annotated[Via, typer.Option(help="The way in.")] = Via.HTTP,
    connections: Annotated[
        int, typer.Option(min=1, max=MAX_CONNECTIONS, help="HTTP requests at a time.")
    ] = 20,
    url: Annotated[
        str | None,
        typer.Option(help="The internal listener, or its balancer.", show_default="MAIL_INTERNAL_HTTP_ADDR"),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File with a bearer token of that listener."),
    ] = None,
    domain: Annotated[
        str, typer.Option(help="Recipients' domain: sinkhole.test or below it.")
    ] = "sinkhole.test",
    patience: Annotated[
        float, typer.Option(min=1, help="Seconds for what is under way at the end; then it is cancelled.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Send mail to the sinkhole as fast as this deployment takes it, and say how fast it was taken, and delivered.

    No mail goes anywhere else. It needs a deployment with a sinkhole that accepts, MAIL_POSTGRES_DSN to see what becomes of
    the mail, and Redis for --via stream; a running `mailkeep dev` is found by itself. Real mail that passes
    meanwhile is delayed by it. Nothing stays behind but ended deliveries, until retention.

    For example:

      mailkeep bench

      mailkeep bench --via stream --messages 50000 --seconds 60

      mailkeep bench --url http://10.0.0.10:8080 --token-file /etc/mailkeep/http-token --json
    """
    from mailkeep.bench.benchmark import Plan
    from mailkeep.cli.output import EXIT_FAILED, load_settings, print_json
    from mailkeep.core.address import is_sinkhole

    domain = domain.lower()
    if not is_sinkhole(domain):
        raise typer.BadParameter(
            f"--domain takes sinkhole.test, or a name below it: a benchmark sends nobody mail, not to {domain!r}"
        )
    plan = Plan(messages=messages, seconds=seconds, patience_s=patience, domain=domain)
    settings = load_settings(find_dev=True)
    found = _measure(
        plan,
        lambda: _way(settings, via, url, _token(settings, token_file), connections),
        quiet=as_json,
    )
    if as_json:
        print_json({"findings": found, "held": found.held})
    else:
        print("\n".join(_report(found)))
    if found.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    raise typer.Exit(0 if found.held else EXIT_FAILED)


def _measure(
    plan: "Plan", open_way: "Callable[[], AbstractAsyncContextManager[Way]]", *, quiet: bool
) -> "Findings":
    """Run it; leave with one clear line where it can't be done."""
    import asyncio
    import signal

    from mailkeep.bench.benchmark import Benchmark
    from mailkeep.bench.ways import AwayError, RefusedError
    from mailkeep.cli._store import open_store
    from mailkeep.cli.output import EXIT_UNAVAILABLE, fail
    from mailkeep.store.errors import StoreUnavailableError

    async def run() -> "Findings":
        async with open_store() as store, open_way() as way:
            with _progress(plan.messages, quiet=quiet) as tell:
                benchmark = Benchmark(store, way, plan, tell)
                loop = asyncio.get_running_loop()
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.add_signal_handler(number, benchmark.stop)
                return await benchmark.run()

    try:
        return asyncio.run(run())
    except RefusedError as fault:
        fail(str(fault))
    except (AwayError, StoreUnavailableError) as fault:
        fail(f"{fault}; is `mailkeep serve` running?", EXIT_UNAVAILABLE)


@asynccontextmanager
async def _way(
    settings: "Settings", via: Via, url: str | None, token: str | None, connections: int
) -> "AsyncIterator[Way]":
    from mailkeep.bench.ways import HttpWay, StreamWay
    from mailkeep.cli._listener import client_tls, listener_url
    from mailkeep.cli.output import EXIT_CONFIG, fail
    from mailkeep.client import AsyncClient
    from mailkeep.intake.redis_client import redis_connector

    if via is Via.STREAM:
        if not settings.has_redis:
            fail("--via stream needs MAIL_REDIS_MASTER_ADDR, the Redis that the service reads", EXIT_CONFIG)
        async with redis_connector(settings)() as redis:
            yield StreamWay(redis)
        return
    try:
        client = AsyncClient(url or listener_url(settings), token=token, tls=client_tls(settings))
    except ValueError as fault:
        raise typer.BadParameter(str(fault)) from fault
    try:
        yield HttpWay(client, connections)
    finally:
        await client.close()


def _token(settings: "Settings", token_file: Path | None) -> str | None:
    if token_file is not None:
        return token_file.read_text(encoding="utf-8").strip()
    tokens = settings.internal_http_tokens
    return tokens[0].reveal() if tokens else None


@contextmanager
def _progress(messages: int, *, quiet: bool) -> "Iterator[Callable[[Progress], None]]":
    """Show a bar on a terminal, and nothing elsewhere."""
    import sys

    if quiet or not sys.stdout.isatty():
        yield lambda _progress: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, transient=True) as bars:
        accepted = bars.add_task("accepted", total=messages)
        ended = bars.add_task("delivered", total=messages)

        def tell(progress: "Progress") -> None:
            bars.update(accepted, completed=progress.accepted)
            bars.update(ended, completed=progress.ended)

        yield tell


def _report(found: "Findings") -> list[str]:
    def rate(per_s: float | None) -> str:
        return "" if per_s is None else f"{per_s:,.0f}/s, {per_s * DAY_S / 1e6:,.1f} million a day"

    def times(measured: "Percentiles | None") -> str:
        return "" if measured is None else f"p50 {measured.p50_ms:.1f} ms, p99 {measured.p99_ms:.1f} ms"

    cpu = found.cpu
    service = f"{cpu.service_ms_per_mail:.2f} ms a mail" if cpu.service_ms_per_mail is not None else ""
    not_sent = ", ".join(f"{count} {status}" for status, count in sorted(found.not_sent.items()))
    rows = {
        "accepted": f"{found.accepted:,} mails by {found.via}",
        "sent": f"{found.sent:,}" + (f", not {not_sent}" if not_sent else ""),
        "accepted/s": rate(found.accepted_per_s),
        "delivered/s": rate(found.sent_per_s),
        "requests": times(found.requests),
        "accepted to sent": times(found.accepted_to_sent),
        f"CPU of {cpu.replicas} replica{'s' * (cpu.replicas != 1)} here": service,
        "CPU of the benchmark": f"{cpu.benchmark_ms_per_mail:.2f} ms a mail",
    }
    lines = [f"{name:<22} {value}" for name, value in rows.items() if value]
    if found.refused:
        lines.append("The service began to refuse mail; what follows it was not sent.")
    lines.append("Every mail arrived." if found.held else "Not every mail arrived.")
    return lines
