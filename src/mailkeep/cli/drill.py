"""`mailkeep drill`: prove on a deployment that the queue keeps what it promises.

Exit codes: 0 every step held, 1 one did not, 2 wrong usage, 130 interrupted (the sinkhole is parked again, and chaos drained
and judged, all the same).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailkeep.drill.chaos import Plan, Progress, Run
    from mailkeep.drill.judgement import Figures, Takeovers
    from mailkeep.drill.queue_persistence import Deployment
    from mailkeep.drill.report import Report, Step

MIN_REPLICAS: Final = 2
MAX_REPLICAS: Final = 20
EXIT_INTERRUPTED: Final = 130
MAX_MINUTES: Final = 480
"""The ledger of a night is kept in memory."""
MAX_SEED: Final = 2**32

app = typer.Typer(help="Prove that the queue keeps what it promises.", no_args_is_help=True)


@app.callback()
def _drills() -> None:
    pass


@app.command("queue-persistence")
def queue_persistence(
    *,
    replicas: Annotated[
        int, typer.Option(min=MIN_REPLICAS, max=MAX_REPLICAS, help="Replicas of the drill's own deployment.")
    ] = 3,
    replica_url: Annotated[
        list[str] | None,
        typer.Option(help="A replica of an existing deployment: its internal listener. Repeatable."),
    ] = None,
    replica_command: Annotated[
        str | None,
        typer.Option(help="Kills a replica there, e.g. 'docker compose kill -s KILL mailkeep-{replica}'."),
    ] = None,
    replace_command: Annotated[
        str | None, typer.Option(help="Starts its replacement, where nobody else does.")
    ] = None,
    mode_command: Annotated[
        str | None, typer.Option(help="Sets the sinkhole's mode, e.g. 'mailkeep sinkhole mode {mode}'.")
    ] = None,
    copies_command: Annotated[
        str | None, typer.Option(help="Prints how many messages the sinkhole took for {recipient}.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with a bearer token of the internal listeners.")
    ] = None,
    domain: Annotated[str, typer.Option(help="A domain that is routed to the sinkhole.")] = "sinkhole.test",
    patience: Annotated[float, typer.Option(help="Seconds that each step may take.", min=1)] = 60.0,
    junit: Annotated[Path | None, typer.Option(help="Write the report as JUnit XML, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Kill a replica while a mail waits: it must be seen by every replica throughout, and arrive exactly once.

    Without options on a deployment of its own: embedded PostgreSQL, a sinkhole, three replicas. On an existing one with
    --replica-url, --replica-command and --mode-command. The sinkhole is parked in `defer` at the end, whatever happens.
    """
    import tempfile

    from mailkeep.cli.output import EXIT_FAILED, fail
    from mailkeep.drill.hooked import HookedDeployment
    from mailkeep.drill.local import local_deployment
    from mailkeep.drill.replica_api import ReplicaApi
    from mailkeep.store.embedded import EmbeddedError

    hooks = (replica_url, replica_command, mode_command)
    if any(hooks) and not all(hooks):
        raise typer.BadParameter("--replica-url, --replica-command and --mode-command go together")

    def drill(deployment: "Deployment") -> "Report":
        return _run(deployment, patience, domain, as_json=as_json)

    try:
        if replica_url and replica_command and mode_command:
            if len(replica_url) < MIN_REPLICAS:
                raise typer.BadParameter("the drill needs two replicas at least: --replica-url twice")
            token = token_file.read_text(encoding="utf-8").strip() if token_file else None
            hooked = HookedDeployment(
                [ReplicaApi(url, token) for url in replica_url],
                kill_command=replica_command,
                mode_command=mode_command,
                replace_command=replace_command,
                copies_command=copies_command,
            )
            report = drill(hooked)
        else:
            with (
                tempfile.TemporaryDirectory(prefix="mailkeep-drill-") as folder,
                local_deployment(_reachable(Path(folder)), replica_count=replicas) as deployment,
            ):
                report = drill(deployment)
                if not report.held:
                    typer.echo(deployment.words(), err=True)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (OSError, EmbeddedError) as fault:
        fail(f"the drill can't run: {fault}")
    _write(report, junit, as_json=as_json)
    if not report.held:
        raise typer.Exit(EXIT_FAILED)


@app.command("chaos")
def chaos(
    *,
    minutes: Annotated[
        float, typer.Option(min=0.1, max=MAX_MINUTES, help="How long faults strike; the drain comes on top.")
    ] = 5.0,
    replicas: Annotated[int, typer.Option(min=MIN_REPLICAS, max=MAX_REPLICAS, help="Replicas.")] = 3,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_SEED, help="Draws the schedule of faults; one is made up and told."),
    ] = None,
    kills_per_minute: Annotated[
        float, typer.Option(min=1, max=60, help="How often a replica is killed, about.")
    ] = 12.0,
    strike: Annotated[
        list[str] | None,
        typer.Option(help="Only this kind: kill, stop, freeze, postgres, redis or sink. Repeatable."),
    ] = None,
    mails_per_second: Annotated[float, typer.Option(min=0.1, max=200, help="The load.")] = 10.0,
    replica_ttl: Annotated[
        float, typer.Option(min=1, max=60, help="MAIL_REPLICA_TTL of the replicas, in seconds.")
    ] = 10.0,
    patience: Annotated[float, typer.Option(help="Seconds that the drain may take.", min=10)] = 180.0,
    junit: Annotated[Path | None, typer.Option(help="Write the report as JUnit XML, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Strike a deployment of its own by a seeded schedule under load, drain it, and account for every mail.

    Replicas are killed, stopped and frozen, PostgreSQL is killed, Redis restarted, the next hop stalls, drops, defers and
    loses replies. It succeeds only if nothing is lost or stuck, every second copy is explained and none is one of
    at_most_once. Ctrl-C ends the faults early: the rest is drained and judged all the same.

    For example:

      mailkeep drill chaos --minutes 30 --replicas 4 --seed 7

      mailkeep drill chaos --minutes 7 --replicas 4 --kills-per-minute 15 --strike kill --strike stop
    """
    import secrets

    from mailkeep.cli.output import EXIT_FAILED
    from mailkeep.drill.chaos import Plan
    from mailkeep.drill.strikes import StrikeKind

    unknown = set(strike or ()) - set(StrikeKind)
    if unknown:
        raise typer.BadParameter(
            f"--strike is one of {', '.join(StrikeKind)}, not {', '.join(sorted(unknown))}"
        )
    plan = Plan(
        seed=secrets.randbelow(MAX_SEED) if seed is None else seed,
        duration_s=minutes * 60,
        replica_count=replicas,
        kills_per_minute=kills_per_minute,
        mails_per_s=mails_per_second,
        ttl_s=replica_ttl,
        patience_s=patience,
        kinds=tuple(kind for kind in StrikeKind if strike is None or kind in strike),
    )
    run = _run_chaos(plan, as_json=as_json)
    _write_chaos(run, junit, as_json=as_json)
    if run.is_interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if not run.report.held:
        raise typer.Exit(EXIT_FAILED)


def _run_chaos(plan: "Plan", *, as_json: bool) -> "Run":
    import signal
    import tempfile

    from mailkeep.cli.output import fail
    from mailkeep.drill.chaos import Chaos, settings
    from mailkeep.drill.local import local_deployment
    from mailkeep.store.embedded import EmbeddedError

    # An order to stop, too, ends the faults and drains.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="mailkeep-chaos-") as folder,
            local_deployment(
                _reachable(Path(folder)),
                replica_count=plan.replica_count,
                environ=settings(plan),
                mode="accept",
                with_redis=True,
            ) as deployment,
        ):
            run = Chaos(
                deployment, plan, _teller(as_json=as_json), _progress_line(plan, as_json=as_json)
            ).run()
            if not run.report.held:
                typer.echo(deployment.words(), err=True)
            return run
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (OSError, EmbeddedError) as fault:
        fail(f"the drill can't run: {fault}")


def _progress_line(plan: "Plan", *, as_json: bool) -> "Callable[[Progress], None]":
    """Return what shows the progress in one line that is written anew each second; on a terminal only."""
    import sys
    import time

    if as_json or not sys.stdout.isatty():
        return lambda _progress: None
    shown_at = 0.0

    def show(progress: "Progress") -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at < 1.0:
            return
        shown_at = time.monotonic()
        struck = ", ".join(f"{count} {kind}" for kind, count in sorted(progress.struck.items()))
        line = f"{progress.ran_s:5.0f} of {plan.duration_s:.0f} s  {progress.accepted} accepted  {struck}"
        print(f"\r\x1b[K{line}  [{progress.mode}]", end="\r", flush=True)

    return show


def _write_chaos(run: "Run", junit_file: Path | None, *, as_json: bool) -> None:
    from mailkeep.cli.output import print_json
    from mailkeep.drill.report import junit

    if junit_file is not None:
        junit_file.write_bytes(junit(run.report))
    if as_json:
        report = {"drill": run.report.drill, "held": run.report.held, "steps": run.report.steps}
        print_json(
            {
                **report,
                "plan": run.plan,
                "struck": run.struck,
                "interrupted": run.is_interrupted,
                "ledger": run.figures,
                "conditions": run.conditions,
            }
        )
        return
    print()
    print("\n".join(_ledger_lines(run)))
    print("Every mail is accounted for." if run.report.held else "The accounts do NOT agree.")


def _ledger_lines(run: "Run") -> list[str]:
    """Return the ledger for a person."""
    found = run.figures
    told = [("seed", str(run.plan.seed)), ("struck", _counted(run.struck)), ("on", _worded(run.conditions))]
    if found is None:
        told.append(("ledger", "none: the run did not come to its end"))
    else:
        told += [
            ("accepted", f"{found.accepted} mails, {found.at_most_once} of them at_most_once"),
            ("ended", _counted(found.ended)),
            ("lost", f"lost = {found.lost}"),
            ("copies", f"{found.copies}, {found.attempts_unknown} attempts of unknown outcome"),
            ("explained", _counted(found.copies_explained)),
            ("unexplained", str(found.copies_unexplained)),
            ("at_most_once", f"{found.at_most_once_doubled} doubled"),
            ("dead letters", str(found.dead_letters)),
            ("takeovers", _takeovers(found)),
        ]
    return [f"{name:<14}{value}" for name, value in told]


def _takeovers(found: "Figures") -> str:
    def said(takeovers: "Takeovers") -> str:
        if not takeovers.count:
            return "0"
        return f"{takeovers.count} (p50 {takeovers.p50_s} s, p99 {takeovers.p99_s} s, longest {takeovers.longest_s} s)"

    return (
        f"after kill -9: {said(found.takeovers)}; while PostgreSQL was away: {said(found.takeovers_in_outage)};"
        f" claims left by stops: {found.claims_left_by_stops}"
    )


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "0"


def _worded(words: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in words.items())


def _reachable(folder: Path) -> Path:
    folder.chmod(0o755)  # PostgreSQL may run as another user
    return folder


def _run(deployment: "Deployment", patience_s: float, domain: str, *, as_json: bool) -> "Report":
    from mailkeep.drill.queue_persistence import QueuePersistence

    tell = _teller(as_json=as_json)
    return QueuePersistence(deployment, tell, patience_s=patience_s, domain=domain).run()


def _teller(*, as_json: bool) -> "Callable[[Step], None]":
    from mailkeep.drill.report import readable

    return lambda step: None if as_json else print(readable(step), flush=True)


def _write(report: "Report", junit_file: Path | None, *, as_json: bool) -> None:
    from mailkeep.cli.output import print_json
    from mailkeep.drill.report import junit

    if junit_file is not None:
        junit_file.write_bytes(junit(report))
    if as_json:
        print_json({"drill": report.drill, "held": report.held, "steps": report.steps})
    else:
        print("Every step held." if report.held else "The queue did NOT keep its promise.")
