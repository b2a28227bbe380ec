"""`mailkeep dev`: everything, embedded, in one command."""

from pathlib import Path
from typing import Annotated

import typer


def dev(
    *,
    examples: Annotated[
        bool, typer.Option("--examples", help="Send a few example mails and show what happens.")
    ] = False,
    once: Annotated[
        bool, typer.Option("--once", help="End after the examples; exit code 0 if all went well.")
    ] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where the embedded servers keep their data.", show_default="a folder of yours"),
    ] = None,
) -> None:
    """Run Mailkeep with embedded PostgreSQL and Redis and a sinkhole that takes all mail.

    Nothing needs to be installed or configured, and no mail leaves this machine.

    For example `mailkeep dev`, or `mailkeep dev --examples --once`.
    """
    import uvloop

    from mailkeep.cli.output import fail
    from mailkeep.dev.session import run
    from mailkeep.settings import SettingsError
    from mailkeep.store.embedded import EmbeddedError, default_data_dir
    from mailkeep.wiring import StartError

    data_dir = data_dir or default_data_dir()
    data_dir.mkdir(parents=True, exist_ok=True)
    try:
        done = uvloop.run(run(data_dir, examples=examples or once, once=once))
    except (EmbeddedError, SettingsError, StartError) as fault:
        fail(str(fault))
    raise typer.Exit(0 if done else 1)
