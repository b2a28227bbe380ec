"""`make bench`: mail in to next hop, beside Postfix with the same mail, sink and disk, in turns.

Rows: `http` (Postfix beside Mailkeep), `template`, `stream` (and its consumer alone), `sql`, `flood` (login codes while a
stream is poured in). `--quick` is a look (2,000 messages, one round); the default is what a published figure needs
(20,000, three rounds). Exit code 1 if a message was lost or the figures can't be trusted.
"""

import argparse
import functools
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec
from rich.console import Console

from bench.errors import BenchError
from bench.facts import machine_facts
from bench.flood import FloodPlan, observe_flood
from bench.mailkeep import Setup, mailkeep
from bench.peer import Intake, Peer
from bench.postfix import postfix, postfix_missing
from bench.report import Report, compare, in_brief, show
from bench.run import Figures, Observed, Plan, observe
from bench.sink import Sink

EXIT_LOST: Final = 1
EXIT_INTERRUPTED: Final = 130
MIN_WIDTH: Final = 120  # of the table; a file or a pipe would get 80

ROWS: Final = ("http", "template", "stream", "sql", "flood")
DEFAULT_ROWS: Final = ("http", "stream", "flood")
MAIL: Final = "mail to the hop"
CODES: Final = "login codes to the hop"


class Result(msgspec.Struct, frozen=True):
    """What one run adds to the report: figures for columns of a table."""

    table: str
    columns: dict[str, Figures]
    facts: dict[str, str]


StartPeer = Callable[[Path, int], AbstractContextManager[Peer]]
"""Starts a peer in a new folder, with the sink at a port."""
Observe = Callable[[Peer, Sink], Observed]
"""Does with a running peer what is to be measured."""
Run = Callable[[Path], Result]
"""Measures once, in a folder of its own below the given one."""


class Options(msgspec.Struct, frozen=True):
    """The command line."""

    rows: tuple[str, ...]
    quick: bool
    messages: int | None
    rounds: int | None
    processes: int
    only: str | None
    dir: Path
    json: Path | None

    @property
    def plan(self) -> Plan:
        """What each run of mail sends."""
        if self.quick:
            return Plan(messages=self.messages or 2_000, quiet_messages=50)
        return Plan(messages=self.messages or 20_000, quiet_messages=200)

    @property
    def flood_plan(self) -> FloodPlan:
        """What each run of the flood sends: ten times as much, so that it lasts."""
        return FloodPlan(messages=10 * self.plan.messages)

    @property
    def turns(self) -> int:
        """How many runs each column gets."""
        return self.rounds or (1 if self.quick else 3)


def main() -> int:
    """Run the benchmark; returns the exit code."""
    options = _options()
    console = Console(width=max(Console().width, MIN_WIDTH))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        with _folder(options.dir) as folder:
            report = _bench(options, folder, console)
    except BenchError as fault:
        console.print(f"no figures: {fault}", style="red", markup=False)
        return EXIT_LOST
    except KeyboardInterrupt:
        console.print("interrupted; all that was started has been stopped")
        return EXIT_INTERRUPTED
    show(report, console)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    return EXIT_LOST if report.lost else 0


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--rows", type=_rows, default=DEFAULT_ROWS, help=f"of {','.join(ROWS)} (http,stream,flood)"
    )
    parser.add_argument("--quick", action="store_true", help="2,000 messages, one round, less quiet time")
    parser.add_argument(
        "--messages", type=int, help="messages of each run (20,000; the flood has ten times as many)"
    )
    parser.add_argument("--rounds", type=int, help="runs of each row, in turns (3)")
    parser.add_argument("--processes", type=int, default=1, help="of `mailkeep serve` (1)")
    parser.add_argument("--only", choices=("postfix", "mailkeep"), help="leave the other peer out")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="a folder on a disk (/var/tmp)")
    parser.add_argument("--json", type=Path, help="write the report there as well")
    return Options(**vars(parser.parse_args()))


def _rows(text: str) -> tuple[str, ...]:
    chosen = text.split(",")
    if unknown := set(chosen) - set(ROWS):
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(sorted(unknown))}")
    return tuple(row for row in ROWS if row in chosen)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # impatience must not break off the stopping
    raise KeyboardInterrupt


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """Make a folder that Postfix and PostgreSQL, which are not root, can pass; remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mailkeep-bench-", dir=parent.resolve()))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _bench(options: Options, folder: Path, console: Console) -> Report:
    facts = machine_facts(folder)
    runs = _runs(options, console)
    tables: dict[str, dict[str, list[Figures]]] = {}
    for turn in range(options.turns):
        for run in runs if turn % 2 == 0 else reversed(runs):
            result = run(folder)
            facts |= result.facts
            for column, seen in result.columns.items():
                tables.setdefault(result.table, {}).setdefault(column, []).append(seen)
                console.print(
                    f"round {turn + 1}: {result.table}: {column}: {in_brief(seen)}", highlight=False
                )
    compared = {table: compare(columns) for table, columns in tables.items()}
    return Report(facts | _plan_facts(options), compared)


def _runs(options: Options, console: Console) -> list[Run]:
    """Return what measures each row, Postfix first."""
    starts: list[StartPeer] = []
    missing = postfix_missing()
    if "http" in options.rows and options.only != "mailkeep":
        if missing:
            console.print(f"without Postfix and ratios: {missing}", style="yellow")
        else:
            starts.append(postfix)
    if options.only != "postfix":
        starts += [functools.partial(mailkeep, setup=setup) for setup in _setups(options)]
    runs: list[Run] = [
        functools.partial(_run, MAIL, start, functools.partial(observe, plan=options.plan))
        for start in starts
    ]
    if "flood" in options.rows and options.only != "postfix":
        start = functools.partial(mailkeep, setup=Setup("Mailkeep", Intake.STREAM, options.processes))
        flood = functools.partial(observe_flood, plan=options.flood_plan)
        runs.append(functools.partial(_run, CODES, start, flood))
    if not runs:
        raise BenchError(missing or "nothing to measure")
    return runs


def _setups(options: Options) -> list[Setup]:
    setups = {
        "http": [Setup("Mailkeep HTTP", Intake.HTTP_RENDERED, options.processes)],
        "template": [Setup("Mailkeep template", Intake.HTTP_TEMPLATE, options.processes)],
        "stream": [
            Setup("Mailkeep stream", Intake.STREAM, options.processes),
            Setup("stream, parked", Intake.STREAM, options.processes, parked=True),
        ],
        "sql": [Setup("Mailkeep SQL", Intake.SQL, options.processes)],
    }
    return [setup for row in options.rows for setup in setups.get(row, [])]


def _run(table: str, start: StartPeer, observe: Observe, folder: Path) -> Result:
    """Measure one peer from an empty folder; read the sink when the peer has stopped, so that no copy is missed."""
    with Sink() as sink, tempfile.TemporaryDirectory(dir=folder) as own:
        Path(own).chmod(0o755)
        with start(Path(own), sink.port) as peer:
            seen = observe(peer, sink)
        return Result(table, seen.figures(sink.take()), peer.facts)


def _plan_facts(options: Options) -> dict[str, str]:
    plan = options.plan
    flood = options.flood_plan
    return {
        "load": f"{plan.messages:,} messages over {plan.connections} connections in each of {options.turns} runs, "
        f"after {plan.warm_messages} to warm up and {plan.quiet_messages} at {1 / plan.quiet_pause_s:.0f}/s",
        "flood": f"{flood.messages:,} stream commands, meanwhile {flood.codes} login codes at {1 / flood.pause_s:.0f}/s",
        "mailkeep serve": f"--processes {options.processes}",
    }


if __name__ == "__main__":
    sys.exit(main())
