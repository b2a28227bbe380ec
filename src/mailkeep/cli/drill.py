"""`mailkeep drill`: prove on a deployment that the queue keeps what it promises.

Exit codes: 0 every step held, 1 one did not, 2 wrong usage, 130 interrupted (the sinkhole is parked again all the same).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from mailkeep.drill.queue_persistence import Deployment
    from mailkeep.drill.report import Report

MIN_REPLICAS: Final = 2
MAX_REPLICAS: Final = 20
EXIT_INTERRUPTED: Final = 130

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


def _reachable(folder: Path) -> Path:
    folder.chmod(0o755)  # PostgreSQL may run as another user
    return folder


def _run(deployment: "Deployment", patience_s: float, domain: str, *, as_json: bool) -> "Report":
    from mailkeep.drill.queue_persistence import QueuePersistence
    from mailkeep.drill.report import Step, readable

    def tell(step: Step) -> None:
        if not as_json:
            print(readable(step), flush=True)

    return QueuePersistence(deployment, tell, patience_s=patience_s, domain=domain).run()


def _write(report: "Report", junit_file: Path | None, *, as_json: bool) -> None:
    from mailkeep.cli.output import print_json
    from mailkeep.drill.report import junit

    if junit_file is not None:
        junit_file.write_bytes(junit(report))
    if as_json:
        print_json({"drill": report.drill, "held": report.held, "steps": report.steps})
    else:
        print("Every step held." if report.held else "The queue did NOT keep its promise.")
