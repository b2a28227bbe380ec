"""`make bench`: HTTP intake to next hop, beside Postfix with the same mail, sink and disk, in turns.

`--quick` is a look (2,000 messages, one round); the default is what a published figure needs (20,000, three rounds).
Exit code 1 if a message was lost or the figures can't be trusted.
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
from bench.mailkeep import mailkeep
from bench.peer import Intake, Peer
from bench.postfix import postfix, postfix_missing
from bench.report import Report, show, summarise
from bench.run import Figures, Plan, figures, observe
from bench.sink import Sink

EXIT_LOST: Final = 1
EXIT_INTERRUPTED: Final = 130
MIN_WIDTH: Final = 100  # of the table; a file or a pipe would get 80

StartPeer = Callable[[Path, int], AbstractContextManager[Peer]]
"""Starts a peer in a new folder, with the sink at a port."""


class Options(msgspec.Struct, frozen=True):
    """The command line."""

    quick: bool
    messages: int | None
    rounds: int | None
    processes: int
    template: bool
    only: str | None
    dir: Path
    json: Path | None

    @property
    def plan(self) -> Plan:
        """What each run sends."""
        if self.quick:
            return Plan(messages=self.messages or 2_000, quiet_messages=50)
        return Plan(messages=self.messages or 20_000, quiet_messages=200)

    @property
    def turns(self) -> int:
        """How many runs each peer gets."""
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
    return EXIT_LOST if any(run.lost for runs in report.runs.values() for run in runs) else 0


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 messages, one round, less quiet time")
    parser.add_argument("--messages", type=int, help="messages of each run (20,000)")
    parser.add_argument("--rounds", type=int, help="runs of each peer, in turns (3)")
    parser.add_argument("--processes", type=int, default=1, help="of `mailkeep serve` (1)")
    parser.add_argument("--template", action="store_true", help="also measure mail from a template")
    parser.add_argument("--only", choices=("postfix", "mailkeep"), help="leave the other peer out")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="a folder on a disk (/var/tmp)")
    parser.add_argument("--json", type=Path, help="write the report there as well")
    return Options(**vars(parser.parse_args()))


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
    peers = _peers(options, console)
    runs: dict[str, list[Figures]] = {}
    for turn in range(options.turns):
        for start in peers if turn % 2 == 0 else reversed(peers):
            name, seen, peer_facts = _run(start, folder, options.plan)
            runs.setdefault(name, []).append(seen)
            facts |= peer_facts
            console.print(
                f"round {turn + 1}: {name}: {seen.accepted_per_s:,.0f} accepted/s, "
                f"{seen.delivered_per_s:,.0f} delivered/s, {seen.cpu_s_per_1000:.2f} CPU-s per 1,000"
            )
    return summarise(facts | _plan_facts(options), runs)


def _peers(options: Options, console: Console) -> list[StartPeer]:
    """Return what starts each peer, Postfix first."""
    peers: list[StartPeer] = []
    missing = postfix_missing()
    if missing and options.only != "mailkeep":
        console.print(f"without Postfix and ratios: {missing}", style="yellow")
    elif options.only != "mailkeep":
        peers.append(postfix)
    if options.only != "postfix":
        intakes = [Intake.HTTP_RENDERED, *([Intake.HTTP_TEMPLATE] if options.template else [])]
        peers += [
            functools.partial(mailkeep, intake=intake, processes=options.processes) for intake in intakes
        ]
    if not peers:
        raise BenchError(missing or "nothing to measure")
    return peers


def _run(start: StartPeer, folder: Path, plan: Plan) -> tuple[str, Figures, dict[str, str]]:
    """Measure one peer from an empty folder; read the sink when the peer has stopped, so that no copy is missed."""
    with Sink() as sink, tempfile.TemporaryDirectory(dir=folder) as own:
        Path(own).chmod(0o755)
        with start(Path(own), sink.port) as peer:
            seen = observe(peer, sink, plan)
        return peer.name, figures(plan, seen, sink.take()), peer.facts


def _plan_facts(options: Options) -> dict[str, str]:
    plan = options.plan
    return {
        "load": f"{plan.messages:,} messages over {plan.connections} connections in each of {options.turns} runs, "
        f"after {plan.warm_messages} to warm up and {plan.quiet_messages} at {1 / plan.quiet_pause_s:.0f}/s",
        "mailkeep serve": f"--processes {options.processes}",
    }


if __name__ == "__main__":
    sys.exit(main())
