"""`mailkeep doctor`: what is wrong, why, and what to do. Looks at the live system and changes nothing.

Exit codes: 0 all is well, 1 something is a warning or could not be checked, 2 wrong usage, 3 something is critical.
"""

from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

if TYPE_CHECKING:
    from mailkeep.doctor.causes import Severity
    from mailkeep.doctor.examine import Report

Name = Literal["backlog", "dead-letters", "suppressed", "auth", "timeouts", "malformed"]
COLOURS: Final = {"ok": "green", "warning": "yellow", "critical": "red"}
MIN_EVERY_S: Final = 2.0


def doctor(
    incident: Annotated[
        Name | None, typer.Argument(metavar="[INCIDENT]", help="One incident alone; all of them without.")
    ] = None,
    *,
    since: Annotated[str, typer.Option(help="How far back to look, such as 30m or 1d.")] = "1h",
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again, and tell what changes.")
    ] = False,
    every: Annotated[
        float, typer.Option(min=MIN_EVERY_S, help="Seconds between two looks of --watch.")
    ] = 10.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --watch one document a line.")
    ] = False,
) -> None:
    r"""Find the cause of an incident: backlog, dead-letters, suppressed, auth, timeouts or malformed.

    Reads PostgreSQL, Redis, this machine and, without sending mail, each next hop, as the settings of this environment name
    them; run it where a replica runs, or with the same settings. A login that was refused is tried once. Each check says
    what it saw, or why it was not run.

    \b
    Examples:
      mailkeep doctor                     all six
      mailkeep doctor backlog --since 6h
      mailkeep doctor --watch
      mailkeep doctor --json | jq '.diagnoses[] | {incident, severity, causes}'
    \b
    Exit codes: 0 all is well, 1 a warning or a check that could not be run, 2 wrong usage, 3 critical.
    """
    import asyncio

    from mailkeep.cli.output import environment
    from mailkeep.core.duration import parse_duration
    from mailkeep.doctor.causes import Incident
    from mailkeep.doctor.examine import EXIT_CODES, Report, examine
    from mailkeep.doctor.look import Doctor

    try:
        since_s = parse_duration(since)
    except ValueError as fault:
        raise typer.BadParameter(f"--since: {fault}") from None
    incidents = tuple(Incident) if incident is None else (Incident(incident),)
    looking = Doctor.of(environment(find_dev=True), since_s)
    last: Report | None = None

    async def rounds() -> Report:
        nonlocal last
        while True:
            report = examine(await looking.look(), incidents)
            _tell(report, last, as_json=as_json, watched=watch)
            last = report
            if not watch:
                return report
            await asyncio.sleep(every)

    try:
        asyncio.run(rounds())
    except KeyboardInterrupt:
        if last is None:
            raise
    assert last is not None
    raise typer.Exit(EXIT_CODES[last.severity])


def _tell(report: "Report", before: "Report | None", *, as_json: bool, watched: bool) -> None:
    import shutil
    import sys
    import time

    from mailkeep.cli.output import print_json, printable
    from mailkeep.doctor.report import changes, readable

    if as_json and watched:
        import msgspec

        print(msgspec.json.encode(report).decode(), flush=True)
    elif as_json:
        print_json(report)
    elif before is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in readable(report, printable, _paint, width):
            print(line, flush=True)
    else:
        clock = time.strftime("%H:%M:%S")
        changed = list(changes(before, report))
        for line in changed or [f"{report.severity}, nothing changed"]:
            print(f"{clock} {printable(line)}", flush=True)


def _paint(word: str, severity: "Severity") -> str:
    import os
    import sys

    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return word
    return typer.style(word, fg=COLOURS[severity], bold=True)
