"""`make bench`: mail in to next hop, beside Postfix with the same mail, sink and disk, in turns.

Rows are tables of the report, see `bench.rows`. `--quick` is a look (2,000 messages, one round, small backlogs); the default
is what a published figure needs (20,000, three rounds, a million deferred). Exit code 1 if a message was lost or the figures
can't be trusted.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec
from rich.console import Console

from bench.errors import BenchError
from bench.facts import machine_facts
from bench.postfix import postfix_missing
from bench.report import Report, compare, in_brief, show, write
from bench.rows import TITLES, Run, Sizes, full_sizes, quick_sizes, runs_of
from bench.run import Figures

EXIT_LOST: Final = 1
EXIT_INTERRUPTED: Final = 130
MIN_WIDTH: Final = 120  # of the table; a file or a pipe would get 80
DEFAULT_ROWS: Final = ("mail", "starttls", "template", "flood")
ALL: Final = "all"


class Options(msgspec.Struct, frozen=True):
    """The command line."""

    rows: tuple[str, ...]
    quick: bool
    messages: int | None
    rounds: int | None
    processes: int
    only: str | None
    columns: tuple[str, ...]
    dir: Path
    json: Path | None

    @property
    def sizes(self) -> Sizes:
        """How much each run sends."""
        return quick_sizes(self.messages or 2_000) if self.quick else full_sizes(self.messages or 20_000)

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
        write(report, options.json)
    return EXIT_LOST if report.lost else 0


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--rows",
        type=_rows,
        default=DEFAULT_ROWS,
        help=f"{ALL}, or some of {','.join(TITLES)} ({','.join(DEFAULT_ROWS)})",
    )
    parser.add_argument("--quick", action="store_true", help="2,000 messages, one round, small backlogs")
    parser.add_argument(
        "--messages", type=int, help="messages of each run (20,000; the flood has ten times as many)"
    )
    parser.add_argument("--rounds", type=int, help="runs of each row, in turns (3)")
    parser.add_argument("--processes", type=int, default=1, help="of `mailkeep serve` (1)")
    parser.add_argument("--only", choices=("postfix", "mailkeep"), help="leave the other peer out")
    parser.add_argument(
        "--columns",
        type=lambda text: tuple(text.split(",")),
        default=(),
        help="only Mailkeeps with one of these in their names, such as 'mailkeep http,sql'; not with --json",
    )
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="a folder on a disk (/var/tmp)")
    parser.add_argument(
        "--json", type=Path, help="write the report there as well, beside rows that stand there"
    )
    options = Options(**vars(parser.parse_args()))
    if options.columns and options.json:
        parser.error("--columns leaves out part of a row, so that --json would keep half of it")
    return options


def _rows(text: str) -> tuple[str, ...]:
    chosen = list(TITLES) if text == ALL else text.split(",")
    if unknown := set(chosen) - set(TITLES):
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(sorted(unknown))}")
    return tuple(row for row in TITLES if row in chosen)


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
    facts = machine_facts(folder) | _plan_facts(options)
    own_facts: dict[str, dict[str, str]] = {}
    runs = _runs(options, console)
    tables: dict[str, dict[str, list[Figures]]] = {}
    for turn in range(options.turns):
        for run in runs if turn % 2 == 0 else reversed(runs):
            begin_s = time.monotonic()
            result = run(folder)
            took_s = time.monotonic() - begin_s
            own_facts.setdefault(result.row, {}).update(result.facts)
            for column, seen in result.columns.items():
                tables.setdefault(result.row, {}).setdefault(column, []).append(seen)
                console.print(
                    f"round {turn + 1}: {result.row}: {column}: {in_brief(seen)} ({took_s:.0f} s)",
                    highlight=False,
                )
    return Report(
        {
            row: compare(TITLES[row], facts | own_facts[row], columns, quick=options.quick)
            for row, columns in sorted(tables.items(), key=lambda table: list(TITLES).index(table[0]))
        }
    )


def _runs(options: Options, console: Console) -> list[Run]:
    """Return what measures all rows."""
    peers = frozenset({"postfix", "mailkeep"} if options.only is None else {options.only})
    missing = postfix_missing()
    if "postfix" in peers and missing:
        console.print(f"without Postfix and ratios: {missing}", style="yellow")
        peers -= {"postfix"}
    runs = [
        run
        for row in options.rows
        for run in runs_of(row, options.sizes, options.processes, peers, options.columns)
    ]
    if not runs:
        raise BenchError(missing or "nothing to measure")
    return runs


def _plan_facts(options: Options) -> dict[str, str]:
    plan, flood, backlog = options.sizes.plan, options.sizes.flood, options.sizes.backlog
    return {
        "load": f"{plan.messages:,} messages over {plan.connections} connections in each of {options.turns} runs, "
        f"after {plan.warm_messages} to warm up and {plan.quiet_messages} at {1 / plan.quiet_pause_s:.0f}/s",
        "flood": f"{flood.messages:,} stream commands, meanwhile {flood.codes} login codes at {1 / flood.pause_s:.0f}/s",
        "backlog": f"{backlog.waiting:,} deferred, {backlog.ended:,} ended, {backlog.expired:,} of them to be removed",
        "mailkeep serve": f"--processes {options.processes}",
    }


if __name__ == "__main__":
    sys.exit(main())
