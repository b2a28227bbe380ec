"""The command line: one file a verb, each a few lines over the rooms below.

A verb's file imports typer and the standard library at its top, everything else inside its function, so that `mailkeep
--help` and shell completion answer at once; a test holds that. Results go to standard output, faults to standard error
as one line with what, where and what to do. Exit codes stand in `mailkeep.cli.output`.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from mailkeep.cli import (
    dead_letters,
    dkim,
    drill,
    keys,
    malformed,
    payloads,
    queue,
    routes,
    sinkhole,
    suppressions,
    templates,
    webhooks,
)
from mailkeep.cli.bench import bench
from mailkeep.cli.classify import classify
from mailkeep.cli.config import config
from mailkeep.cli.dev import dev
from mailkeep.cli.doctor import doctor
from mailkeep.cli.erase import erase
from mailkeep.cli.events import events
from mailkeep.cli.explain import explain
from mailkeep.cli.healthcheck import healthcheck
from mailkeep.cli.migrate import migrate
from mailkeep.cli.replicas import replicas
from mailkeep.cli.send import send
from mailkeep.cli.serve import serve
from mailkeep.version import __version__

HELP = """Durable outbound mail: what Mailkeep accepts is never lost, and it is sent exactly as promised."""

EXAMPLES = """\b
Examples:
  mailkeep dev --examples         try it: everything embedded, no mail leaves this machine
  mailkeep config                 what is configured, and from where
  mailkeep serve --processes 4    the service
\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 69 a server is away, 78 bad configuration.
"""

app = typer.Typer(
    help=HELP, epilog=EXAMPLES, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
app.command(short_help="Run the service.")(serve)
app.command(short_help="Try it: everything embedded, in one command.")(dev)
app.command(short_help="Bring the database schema up to date.")(migrate)
app.command(short_help="Show what is configured, and from where.")(config)
app.command(short_help="Explain a reply of a mail server.")(classify)
app.command(short_help="Explain where a delivery stands.")(explain)
app.command(short_help="Find the cause of an incident.")(doctor)
app.command(short_help="Read what became of deliveries.")(events)
app.command(short_help="Erase what is stored of a recipient, on their request.")(erase)
app.command(short_help="List the processes that share the queue.")(replicas)
app.command(short_help="Probe a running service; for containers.")(healthcheck)
app.command(short_help="Send one mail and follow it.")(send)
app.add_typer(queue.app, name="queue", short_help="Show and flush what waits, on every replica.")
app.add_typer(
    dead_letters.app, name="dead-letters", short_help="List what was given up, and send it once more."
)
app.add_typer(webhooks.app, name="webhooks", short_help="Show who is told what becomes of mail, and test it.")
app.add_typer(
    malformed.app, name="malformed", short_help="Look at commands that could not be taken, and replay them."
)
app.add_typer(
    suppressions.app, name="suppressions", short_help="Look at addresses that get no mail, and change which."
)
app.add_typer(keys.app, name="keys", short_help="Make, list and revoke API keys for POST /send.")
app.add_typer(dkim.app, name="dkim", short_help="Make keys that sign mail, and list them.")
app.add_typer(payloads.app, name="payloads", short_help="Rotate the keys that seal stored mail.")
app.add_typer(routes.app, name="routes", short_help="Show where mail goes, and test whether it can.")
app.add_typer(templates.app, name="templates", short_help="Check, list and try the templates of mail.")
app.add_typer(drill.app, name="drill", short_help="Prove that the queue keeps what it promises.")
app.command(short_help="Measure how much mail this deployment carries.")(bench)
app.add_typer(sinkhole.app, name="sinkhole", short_help="Run an SMTP server whose answers you choose.")


@app.callback(invoke_without_command=True)
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the versions of this build, its schema and its templates.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --version: print JSON.")] = False,
) -> None:
    if version:
        _print_versions(as_json=as_json)
        raise typer.Exit
    if as_json:
        raise typer.BadParameter("--json without a command goes with --version")


def _print_versions(*, as_json: bool) -> None:
    from mailkeep.cli.output import fail, print_json
    from mailkeep.store.migrate import migrations
    from mailkeep.templates.catalog import SHIPPED_CATALOG, Catalog, CatalogError

    schema = migrations()[-1].version
    directory = Path(os.environ.get("MAIL_TEMPLATE_DIR") or SHIPPED_CATALOG)
    try:
        catalog = Catalog.load(directory).version
    except CatalogError:
        fail(f"the templates of {directory} can't be used; mailkeep templates check says why")
    if as_json:
        print_json({"version": __version__, "schema_version": schema, "catalog_version": catalog})
    else:
        print(f"mailkeep {__version__} (schema {schema}, catalog {catalog})")


def main() -> None:
    """Run the command line; the entry point of `mailkeep` and of `python -m mailkeep`."""
    app(prog_name="mailkeep")
