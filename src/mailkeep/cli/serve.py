"""`mailkeep serve`: the service."""

from typing import Annotated

import typer


def serve(
    *,
    processes: Annotated[
        int, typer.Option(help="Processes to run, each a replica; use as many as cores.", min=1, max=256)
    ] = 1,
    listen_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    send_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    console_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    supervisor: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the service: take mail over HTTP, keep it in PostgreSQL, hand it to the next hop.

    Configured by MAIL_* variables (see `mailkeep config`). SIGTERM and Ctrl-C stop it in order, within
    MAIL_SHUTDOWN_TIMEOUT.

    For example:

      MAIL_POSTGRES_DSN=postgresql://mail@db/mail MAIL_SMTP_MODE=smtp MAIL_SMTP_ADDR=smtp.example.org:587 mailkeep serve --processes 4
    """
    import os

    from mailkeep import faults, serving
    from mailkeep.cli.output import load_settings

    settings = load_settings()
    faults.arm(os.environ)
    raise typer.Exit(
        serving.serve(
            settings,
            processes=processes,
            listen_fd=listen_fd,
            send_fd=send_fd,
            console_fd=console_fd,
            supervisor=supervisor,
        )
    )
