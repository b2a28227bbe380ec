"""`mailkeep replicas`: who shares the queue, alive, stopped in order or lost.

Exit codes: 0 done, 1 no live replica, 69 PostgreSQL is away, 78 bad configuration.
"""

from typing import Annotated, Final

import typer

TITLES: Final = ("ID", "STATE", "HOST", "PID", "VERSION", "IN FLIGHT", "STARTED", "HEARD", "NEXT HOPS OUT")


def replicas(
    *,
    everyone: Annotated[bool, typer.Option("--all", help="Also those that stopped or were lost.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the replicas that share the queue; times are UTC. Leaves with exit code 1 if none is live.

    A replica that stopped or was lost is forgotten after a day.
    """
    from mailkeep.cli._store import ask
    from mailkeep.cli.output import EXIT_FAILED, print_json, table

    found = ask(lambda queue: queue.replicas())
    live = [replica for replica in found if replica.state == "live"]
    shown = found if everyone else live
    if as_json:
        print_json(shown)
    elif shown:
        rows = (
            (
                replica.replica_id,
                replica.state,
                replica.host,
                replica.pid,
                replica.version,
                replica.in_flight,
                f"{replica.started_at:%Y-%m-%d %H:%M:%S}",
                f"{replica.silent_s:.1f} s ago",
                ", ".join(sorted(replica.hops_out)) or "-",
            )
            for replica in shown
        )
        print(table(TITLES, rows))
    else:
        print("No replica is live: `mailkeep serve` starts one.")
    if not live:
        raise typer.Exit(EXIT_FAILED)
