"""The crash matrix: every statement and protocol step from intake to the final record, broken in four ways.

`make crash-matrix` walks each way of `crash_ways` once to find its points, then once more for each point and fault, and
writes `docs/reference/crash-matrix.md`. It exits 1 if a cell is wrong.

    python tests/acceptance/crash_matrix.py --only "by HTTP" --seed not_fenced
"""
# ruff: noqa: T201  # a command prints

import argparse
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final
from uuid import uuid4

import msgspec
from crash_cell import HELD_AT_LEAST_S, TTL_S, Cell, Fault, Found, Ground, Way
from crash_ways import WAYS
from fault_gate import Point, Step

BESIDE: Final = 8
"""Cells that run beside each other: most of their time they wait."""
DRY_BESIDE: Final = 9
DENSE_IN_QUICK: Final = "by HTTP"
ORDINALS: Final = {2: "second", 3: "third"}


class Plan(msgspec.Struct, frozen=True, eq=False):
    """One cell to be walked."""

    way: Way
    guarantee: str
    point: Point
    fault: Fault

    def __str__(self) -> str:
        return f"{self.way.name} | {self.guarantee} | {self.point} | {self.fault}"


class Matrix:
    """The cells of one run over one `Ground`."""

    def __init__(self, ground: Ground, beside: int = BESIDE) -> None:
        self._ground, self._beside = ground, beside
        self._number, self._name = 0, uuid4().hex[:4]
        self._lock = threading.Lock()

    def plans(self, ways: Sequence[Way] = WAYS) -> list[Plan]:
        """Walk each way once without a fault and return the cells that follow from it."""
        walks = [(way, guarantee) for way in ways for guarantee in way.guarantees]
        with ThreadPoolExecutor(DRY_BESIDE) as threads:
            cells = list(threads.map(lambda walk: self._dry(*walk), walks))
        met: dict[str, set[tuple[str, str]]] = {name: set() for walk in walks for name in [walk[1]]}
        plans: list[Plan] = []
        for (way, guarantee), points in zip(walks, cells, strict=True):
            before = set().union(*met.values())
            own = [point for point in points if point.number <= _often(way, point, before)]
            met[guarantee] |= {(point.place, point.name) for point in points}
            plans += [Plan(way, guarantee, point, fault) for point in own for fault in _faults(point)]
        return plans

    def _dry(self, way: Way, guarantee: str) -> list[Point]:
        cell = Cell(self._ground, self._folder(), way, guarantee, None, None)
        found = cell.walk()
        assert not found.wrong, f"{way.name}, without a fault: {found.wrong}; see {cell.folder}"
        return cell.passed

    def walk(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, Found]]:
        """Walk the cells and yield what was found, in the order in which they end."""
        with ThreadPoolExecutor(self._beside) as threads:
            walks = {threads.submit(self._cell, plan): plan for plan in plans}
            for walked in as_completed(walks):
                yield walks[walked], walked.result()

    def one(self, way: Way, point: Point, fault: Fault) -> Found:
        """Walk one cell that is known by name."""
        return self._cell(Plan(way, way.guarantees[0], point, fault))

    def _cell(self, plan: Plan) -> Found:
        return Cell(self._ground, self._folder(), plan.way, plan.guarantee, plan.point, plan.fault).walk()

    def _folder(self) -> Path:
        with self._lock:
            self._number += 1
            return self._ground.folder / f"{self._name}{self._number}"


def _often(way: Way, point: Point, before: set[tuple[str, str]]) -> int:
    return way.again.get(point.name, 0 if (point.place, point.name) in before else 1)


def _faults(point: Point) -> Sequence[Fault]:
    if (point.place, point.name) == ("http", "answer"):
        # It is with the producer already: there is nothing left to cut or to stall.
        return (Fault.KILL, Fault.FREEZE)
    if (point.place, point.step) == ("postgres", Step.INSIDE):
        return (Fault.KILL, Fault.CUT)  # what goes on, goes on to the commit: that is the step after
    return tuple(Fault)


def quick(plans: Sequence[Plan]) -> list[Plan]:
    """Return the subset for every run: every second point of mail by HTTP and every eighth of the rest, each with one fault, in turn.

    A stalled PostgreSQL is left to the whole matrix: it takes the 30 seconds after which a statement is given up.
    """
    points: dict[tuple[str, str, Point], list[Plan]] = defaultdict(list)
    for plan in plans:
        points[plan.way.name, plan.guarantee, plan.point].append(plan)
    chosen = []
    for number, beside in enumerate(points.values()):
        quickly = [plan for plan in beside if plan.fault is not Fault.STALL or plan.point.place == "smtp"]
        if number % (2 if beside[0].way.name == DENSE_IN_QUICK else 8) == 0:
            chosen.append(quickly[number // 2 % len(quickly)])
    return chosen


# -- the page ------------------------------------------------------------------------------------------------------

_HEAD: Final = """<!-- Written by `make crash-matrix`, which walks all of it; edit tests/acceptance/crash_matrix.py instead. -->

# Crash matrix

Every statement and protocol step from intake to the final record, broken in four ways against real processes, a real PostgreSQL
and a real Redis. The rows are found, not listed: each way is walked once through proxies that know PostgreSQL's, Redis's and
SMTP's steps, so that a new statement makes new rows. What the words mean:

- `before`: asked, and nothing of it has reached the other side. `inside`: executed by PostgreSQL and not committed; of the final
  dot: stored by the next hop and not answered. `after`: committed or answered on the other side, and the answer has not come.
- **kill -9**: the replica dies there, another starts. **cut**: that connection is reset there; the same replica goes on.
  **stall**: nothing moves on that connection until the mail went through all the same (at least {held:g} s), then the step takes place
  late. **freeze**: the whole replica stands still (SIGSTOP) for at least {held:g} s, with a TTL of {ttl:g} s, until another has taken over
  and finished; then it awakes and finds what it waited for.
- The producer repeats under the same key what was not answered. After the fault, and after what was held is let go, one more mail must
  go through, by the same replica where it lives.
- A cell shows how many copies the recipient got. `2` comes with the attempt that explains it, and stands only where the final dot
  had left and its outcome was not yet committed; under `at_most_once` the delivery is `held` there instead. Wrong cells say so. The network may hold all of a `message` that the next hop does not read, its dot included.

In every cell: nothing that was accepted is lost, one key is one delivery, all copies are equal to the last byte with one Message-ID,
each delivery ended once and by legal moves only, attempts and dead letters match, and the accounts add up.

"""


def page(founds: Sequence[Found]) -> str:
    """Return the page that shows what was found."""
    tables = [
        _table(way, guarantee, own)
        for way in WAYS
        for guarantee in way.guarantees
        if (own := [found for found in founds if (found.way, found.guarantee) == (way.name, guarantee)])
    ]
    parts = [_HEAD.format(held=HELD_AT_LEAST_S, ttl=TTL_S) + summary(founds), *_left_out(founds), *tables]
    return "\n\n".join(parts) + "\n"


def _left_out(founds: Sequence[Found]) -> list[str]:
    walked = {found.way for found in founds}
    missing = [way.name for way in WAYS if way.name not in walked]
    blank = sum(
        len(_faults(point))
        for _, _, point in {(found.way, found.guarantee, found.point) for found in founds if found.point}
    )
    said = [f"not walked at all: {', '.join(missing)}"] if missing else []
    said += [f"{blank - len(founds)} blank cells not walked"] if blank > len(founds) else []
    return [f"**This run was cut short: {'; '.join(said)}.**"] if said else []


def summary(founds: Sequence[Found]) -> str:
    """Return the result in one line."""
    twice = [found for found in founds if found.copies > 1]
    return (
        f"**{len(founds)} cells: {sum(found.accepted for found in founds)} mails accepted,"
        f" {sum(found.lost for found in founds)} lost; {len(twice)} cells with a second copy, all of them after the final dot"
        f" ({sum(not found.is_after_dot for found in twice)} elsewhere),"
        f" {sum(found.guarantee == 'at_most_once' for found in twice)} under `at_most_once`;"
        f" {sum(bool(found.wrong) for found in founds)} wrong.**"
    )


def _table(way: Way, guarantee: str, founds: Sequence[Found]) -> str:
    rows: dict[Point, dict[Fault, Found]] = defaultdict(dict)
    for found in founds:
        assert found.point is not None
        assert found.fault is not None
        rows[found.point][found.fault] = found
    title = way.name[0].upper() + way.name[1:] + (f", `{guarantee}`" if len(way.guarantees) > 1 else "")
    lines = [
        f"## {title}",
        "",
        way.what,
        "",
        f"| point | {' | '.join(Fault)} |",
        "| --- " * (len(Fault) + 1) + "|",
    ]
    for point, cells in rows.items():
        shown = [_cell(way, cells[fault]) if fault in cells else "" for fault in Fault]
        lines.append(f"| {point.place} `{point.name}`{_number(point)} {point.step} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _number(point: Point) -> str:
    return f", {ORDINALS[point.number]} time," if point.number > 1 else ""


def _cell(way: Way, found: Found) -> str:
    if found.wrong:
        return (
            f"**WRONG**: lost {found.lost}, copies {found.copies}; "
            + "; ".join(found.wrong).replace("\n", " ")[:200]
        )
    shown = str(found.copies)
    if found.copies > 1:
        causes = {attempt.partition(" ")[0] for attempt in found.attempts if "unknown" in attempt}
        shown += " (" + ", ".join(f"`{cause}`" for cause in sorted(causes)) + ")"
    usual = ", ".join(sorted(way.ends))
    return shown if found.ended in (usual, "") else f"{shown}, `{found.ended}`"


def main() -> int:
    """Walk the whole matrix and write its page; returns the exit code."""
    options = _options()
    folder = Path(options.keep or tempfile.mkdtemp(prefix="mk-matrix-"))
    founds: dict[Plan, Found] = {}
    with Ground(folder, options.seed) as ground:
        matrix = Matrix(ground, options.beside)
        plans = [plan for plan in matrix.plans() if not options.only or plan.way.name in options.only]
        plans = quick(plans) if options.quick else plans
        print(f"{len(plans)} cells; logs of wrong ones in {folder}", flush=True)
        for plan, found in matrix.walk(plans):
            founds[plan] = found
            with (folder / "found.jsonl").open("ab") as lines:
                lines.write(msgspec.json.encode(found) + b"\n")
            print(
                f"{len(founds)}/{len(plans)} {found.took_s:5.1f} s  {plan}: {found.copies} {found.ended}",
                flush=True,
            )
            print(*(f"    WRONG {why}\n" for why in found.wrong), sep="", end="", flush=True)
    in_order = [founds[plan] for plan in plans]
    print(summary(in_order))
    if options.out:
        options.out.write_text(page(in_order), encoding="utf-8")
    return int(any(found.wrong for found in in_order))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="WAY", help="may be given several times")
    parser.add_argument("--quick", action="store_true", help="the subset that every run of the tests walks")
    parser.add_argument("--beside", type=int, default=BESIDE, help="cells at a time")
    parser.add_argument(
        "--seed", default="", metavar="FAULT", help="a bug of seeded_faults.py that is to be caught"
    )
    parser.add_argument("--keep", help="a folder for the logs of cells")
    parser.add_argument("--out", type=Path, help="the page to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
