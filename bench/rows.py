"""The rows: what is measured beside what, by name, and how large it is.

A row is a table of the report; each of its columns is a run of its own, from an empty folder. The runs of all rows take
turns, forwards and backwards, so that what the machine does meanwhile befalls them alike.
"""

import functools
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import msgspec

from bench import backlog, slow_hop
from bench.backlog import BacklogPlan, observe_backlog
from bench.big import observe_big
from bench.collector import Collector
from bench.flood import FloodPlan, observe_flood
from bench.mailkeep import Setup, mailkeep
from bench.peer import Intake, Peer
from bench.postfix import postfix
from bench.run import Figures, Observed, Plan, observe
from bench.sink import Behaviour, Sink
from bench.slow_hop import DELAY_S, observe_slow, observe_stalled, routes

StartPeer = Callable[[Path, Sink], AbstractContextManager[Peer]]
"""Starts a peer in a new folder, with the sink as its next hop."""
Observe = Callable[[Peer, Sink], Observed]
"""Does with a running peer what is to be measured."""

_REPLICAS: Final = {1: "1 replica", 2: "2 replicas", 4: "4 replicas"}
TITLES: Final = {
    "mail": "rendered mail of 2 KB, each way in",
    "starttls": "rendered mail of 2 KB, STARTTLS to the hop",
    "template": "text and HTML of 4 KB, rendered by Mailkeep, handed to Postfix ready",
    "flood": "login codes, idle and with a stream poured in behind them",
    "backlog": "a full queue and a long history",
    "slow_hop": f"a hop that answers after {DELAY_S * 1000:.0f} ms, 100 connections",
    "stalled_hop": "a good hop, alone and beside one that never answers a dot",
    "scale": "1, 2 and 4 replicas, one PostgreSQL, this one machine",
    "big": "attachments of 10 MB",
}
"""Every row, with what its table is called."""


class Sizes(msgspec.Struct, frozen=True):
    """How much each run sends, and how much lies there already."""

    plan: Plan
    slow: Plan
    big: Plan
    backlog: BacklogPlan
    flood: FloodPlan


def full_sizes(messages: int) -> Sizes:
    """Return what a published figure needs."""
    plan = Plan(messages=messages, quiet_messages=200)
    return Sizes(
        plan,
        slow=Plan(messages=messages // 2, quiet_messages=0),
        big=Plan(messages=200, quiet_messages=0, warm_messages=50, sample_s=0.25),
        backlog=BacklogPlan(
            Plan(messages=messages, quiet_messages=0, warm_messages=20_000),
            waiting=1_000_000,
            ended=10_000_000,
            expired=5_000_000,
        ),
        flood=FloodPlan(messages=10 * messages),
    )


def quick_sizes(messages: int) -> Sizes:
    """Return what shows that it works: a look, not a figure."""
    plan = Plan(messages=messages, quiet_messages=50)
    return Sizes(
        plan,
        slow=Plan(messages=messages, quiet_messages=0),
        big=Plan(messages=10, quiet_messages=0, warm_messages=20, sample_s=0.25),
        backlog=BacklogPlan(
            Plan(messages=messages, quiet_messages=0), waiting=20_000, ended=40_000, expired=20_000
        ),
        flood=FloodPlan(messages=10 * messages),
    )


class Result(msgspec.Struct, frozen=True):
    """What one run adds to the report: figures for columns of a row's table."""

    row: str
    columns: dict[str, Figures]
    facts: dict[str, str]


Run = Callable[[Path], Result]
"""Measures once, in a folder of its own below the given one."""


def runs_of(
    row: str, sizes: Sizes, processes: int, peers: frozenset[str], columns: tuple[str, ...] = ()
) -> list[Run]:
    """Return what measures one row, Postfix first, for those of `peers` ("postfix", "mailkeep") that it has.

    With `columns` only Mailkeeps whose names hold one of these.
    """
    starts = _POSTFIX.get(row, []) if "postfix" in peers else []
    if "mailkeep" in peers:
        starts = starts + [
            functools.partial(mailkeep, setup=setup)
            for setup in _setups(row, processes)
            if _is_wanted(setup, columns)
        ]
    match row:
        case "flood":
            watch: Observe = functools.partial(observe_flood, plan=sizes.flood)
        case "backlog":
            return [functools.partial(_run_backlog, sizes.backlog, start) for start in starts]
        case "slow_hop":
            watch = functools.partial(observe_slow, plan=sizes.slow)
        case "stalled_hop" if "mailkeep" in peers:
            return [
                functools.partial(_run_stalled, sizes.plan, is_stalled=is_stalled)
                for is_stalled in (False, True)
            ]
        case "stalled_hop":
            return []
        case "big" if "mailkeep" in peers:
            return [functools.partial(_run_big, sizes.big, start) for start in starts]
        case _:
            watch = functools.partial(observe, plan=sizes.plan)
    slow = row == "slow_hop"
    behaviour = Behaviour(tls=row == "starttls", delay_s=DELAY_S if slow else 0.0, shut=slow)
    return [functools.partial(_run, row, start, watch, behaviour) for start in starts]


_POSTFIX: Final[dict[str, list[StartPeer]]] = {
    "mail": [postfix],
    "starttls": [functools.partial(postfix, name="Postfix, STARTTLS")],
    "template": [functools.partial(postfix, name="Postfix, 4 KB", intake=Intake.SMTP_FINISHED)],
}


def _is_wanted(setup: Setup, columns: tuple[str, ...]) -> bool:
    return not columns or any(part.lower() in setup.name.lower() for part in columns)


def _setups(row: str, processes: int) -> list[Setup]:
    """Return which Mailkeeps a row has."""
    http, cores = Intake.HTTP_RENDERED, os.cpu_count() or 1
    setups = {
        "mail": [
            Setup("Mailkeep HTTP", http, processes),
            Setup("HTTP, every trace", http, processes, traced=1.0),
            Setup("Mailkeep stream", Intake.STREAM, processes),
            Setup("stream, parked", Intake.STREAM, processes, parked=True),
            Setup("Mailkeep SQL", Intake.SQL, processes),
            Setup("stream, a process a core", Intake.STREAM, cores),
            Setup("SQL, a process a core", Intake.SQL, cores),
        ],
        "template": [Setup("Mailkeep template", Intake.HTTP_TEMPLATE, processes)],
        "flood": [Setup("Mailkeep", Intake.STREAM, processes)],
        "backlog": [Setup("Mailkeep", http, processes, environ=backlog.SETTINGS)],
        "slow_hop": [Setup("Mailkeep HTTP", http, processes, environ=slow_hop.SETTINGS)],
        "scale": [Setup(name, http, count) for count, name in _REPLICAS.items()],
        "big": [Setup("Mailkeep HTTP", Intake.HTTP_BIG, processes)],
    }
    return setups.get(row, [Setup("Mailkeep HTTP", http, processes)])


def _run(row: str, start: StartPeer, watch: Observe, behaviour: Behaviour, folder: Path) -> Result:
    """Measure one peer from an empty folder; read the sink when the peer has stopped, so that no copy is missed."""
    with tempfile.TemporaryDirectory(dir=folder) as own, Sink(_passable(own), behaviour) as sink:
        with start(Path(own), sink) as peer:
            seen = watch(peer, sink)
        return Result(row, seen.figures(sink.take()), peer.facts)


def _run_backlog(plan: BacklogPlan, start: StartPeer, folder: Path) -> Result:
    """Measure a peer that fills beside one that stays empty."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as own,
        tempfile.TemporaryDirectory(dir=folder) as others,
        Sink(_passable(own)) as sink,
        Sink(_passable(others)) as empty_sink,
    ):
        with start(Path(own), sink) as peer, start(Path(others), empty_sink) as empty:
            seen = observe_backlog(peer, sink, empty, empty_sink, plan)
        return Result("backlog", seen.figures(sink.take(), empty_sink.take()), peer.facts)


def _run_big(plan: Plan, start: StartPeer, folder: Path) -> Result:
    """Measure big mail beside a process that does nothing: a collector that nobody exports to."""
    with Collector() as idle:
        watch = functools.partial(observe_big, idle_port=idle.port, plan=plan)
        return _run("big", start, watch, Behaviour(), folder)


def _run_stalled(plan: Plan, folder: Path, *, is_stalled: bool) -> Result:
    """Measure a good hop; with `is_stalled` beside one that never answers."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as own,
        Sink(_passable(own)) as good,
        Sink(Path(own), Behaviour(stalled=True)) as stalled,
    ):
        file = Path(own, "routes.toml")
        file.write_text(routes(good, stalled))
        setup = Setup(
            "beside a stalled one" if is_stalled else "the good hop alone",
            Intake.HTTP_RENDERED,
            environ=slow_hop.SETTINGS | {"MAIL_ROUTES_FILE": str(file)},
        )
        with mailkeep(Path(own), good, setup) as peer:
            seen = observe_stalled(peer, good, plan, stalled if is_stalled else None)
        return Result("stalled_hop", seen.figures(good.take()), peer.facts)


def _passable(folder: str) -> Path:
    """Let Postfix and PostgreSQL, which are not root, pass."""
    path = Path(folder)
    path.chmod(0o755)
    return path
