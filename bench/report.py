"""What the runs say together: min, median and max of each figure, and its median over that of the table's base."""

import statistics
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

from bench.run import Figures

LABELS: Final = {
    "accepted_per_s": "accepted/s",
    "delivered_per_s": "delivered/s",
    "cpu_s_per_1000": "CPU-s per 1,000",
    "service_cpu_s_per_1000": "… of the service",
    "postgres_cpu_s_per_1000": "… of PostgreSQL",
    "redis_cpu_s_per_1000": "… of Redis",
    "accepted_per_service_cpu_s": "accepted per CPU-s of the service",
    "peak_memory_mb": "peak memory (PSS), MB",
    "service_memory_before_mb": "memory of the service before, MB",
    "service_memory_peak_mb": "… peak",
    "service_memory_after_mb": "… after",
    "request_to_hop_p50_ms": "request to hop, p50 ms",
    "request_to_hop_p99_ms": "request to hop, p99 ms",
    "accept_to_hop_p50_ms": "acceptance to hop, p50 ms",
    "accept_to_hop_p99_ms": "acceptance to hop, p99 ms",
    "flood_accepted_per_s": "accepted/s of the flood",
    "flood_delivered_per_s": "delivered/s of the flood",
    "empty_delivered_per_s": "delivered/s of an empty service, right before and after",
    "to_empty": "… this one's over it",
    "wal_bytes_per_message": "bytes of WAL a message",
    "wal_to_payload": "… over those of the message",
    "waiting_sessions": "PostgreSQL's sessions that wait",
    "queue_s": "mailkeep queue, s",
    "queue_shape_s": "mailkeep queue shape, s",
    "retention_s": "retention of the old, s",
    "longest_gap_ms": "longest time without an arrival, ms",
    "share_of_arithmetic": "share of connections / latency",
    "loop_stall_ms": "longest wait for an idle answer, ms",
    "machine_stall_ms": "… of a process that does nothing",
    "lost": "lost",
    "duplicated": "duplicated",
    "message_bytes": "bytes a message at the hop",
    "load_cpu_ms": "CPU of the load client a message, ms",
    "sink_cpu_ms": "… of the sink",
    "collector_cpu_ms": "… of the collector",
    "elsewhere_cores": "cores busy elsewhere",
}
"""What each figure is called; the four to the hop are at 10 a second, the last is kernel and other programs."""
NO_RATIO: Final = frozenset(
    {
        "lost",
        "duplicated",
        "message_bytes",
        "wal_to_payload",
        "share_of_arithmetic",
        "empty_delivered_per_s",
        "to_empty",
        "load_cpu_ms",
        "sink_cpu_ms",
        "collector_cpu_ms",
        "elsewhere_cores",
    }
)


class Spread(msgspec.Struct, frozen=True):
    """One figure over the rounds."""

    min: float
    median: float
    max: float


class Comparison(msgspec.Struct, frozen=True):
    """One table, by column; `ratios` are medians over the median of `base`. `quick` figures show that it works, and no more."""

    title: str
    quick: bool
    facts: dict[str, str]
    runs: dict[str, list[Figures]]
    summary: dict[str, dict[str, Spread]]
    base: str
    ratios: dict[str, dict[str, float]]


class Report(msgspec.Struct, frozen=True):
    """All tables by the names of their rows, as `--json` writes them."""

    tables: dict[str, Comparison]
    labels: dict[str, str] = msgspec.field(default_factory=lambda: dict(LABELS))

    @property
    def lost(self) -> int:
        """How many messages were accepted and never came, in all runs."""
        return sum(run.lost for table in self.tables.values() for runs in table.runs.values() for run in runs)


def write(report: Report, path: Path) -> None:
    """Write `report`; tables of other rows that are there already stay, so that rows can be measured one by one."""
    kept = msgspec.json.decode(path.read_bytes(), type=Report).tables if path.exists() else {}
    merged = Report(kept | report.tables)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(merged)) + b"\n")


def compare(title: str, facts: dict[str, str], runs: dict[str, list[Figures]], *, quick: bool) -> Comparison:
    """Put the runs of one table together; the first column is the base of the ratios."""
    summary = {column: _spreads(figures) for column, figures in runs.items()}
    base, *others = summary
    ratios = {
        column: {
            name: spread.median / summary[base][name].median
            for name, spread in summary[column].items()
            if name not in NO_RATIO and name in summary[base] and summary[base][name].median
        }
        for column in others
    }
    return Comparison(title, quick, facts, runs, summary, base, ratios)


def _spreads(runs: list[Figures]) -> dict[str, Spread]:
    columns = {name: [getattr(figures, name) for figures in runs] for name in LABELS}
    return {
        name: Spread(min(values), statistics.median(values), max(values))
        for name, values in columns.items()
        if None not in values
    }


def in_brief(figures: Figures) -> str:
    """Return one line about a run."""
    shown = (
        "accepted_per_s",
        "delivered_per_s",
        "cpu_s_per_1000",
        "request_to_hop_p50_ms",
        "request_to_hop_p99_ms",
    )
    values = {LABELS[name]: getattr(figures, name) for name in shown}
    return ", ".join(f"{label} {_number(value)}" for label, value in values.items() if value is not None)


def show(report: Report, console: Console) -> None:
    """Print the report."""
    facts: dict[str, str] = {}
    for comparison in report.tables.values():
        facts |= comparison.facts
    for name, fact in facts.items():
        console.print(f"{name}: {fact}", highlight=False, markup=False)
    for comparison in report.tables.values():
        console.print(_table(comparison))


def _table(comparison: Comparison) -> Table:
    rounds = len(comparison.runs[comparison.base])
    table = Table(
        title=comparison.title,
        caption=f"median (x times that of {comparison.base}) and min to max of {rounds} runs",
    )
    table.add_column("", no_wrap=True)
    for column in comparison.summary:
        table.add_column(column, justify="right")
    for name, label in LABELS.items():
        cells = [
            _cell(spreads.get(name), comparison.ratios.get(column, {}).get(name))
            for column, spreads in comparison.summary.items()
        ]
        if any(cells):
            table.add_row(label, *cells)
    return table


def _cell(spread: Spread | None, ratio: float | None) -> str:
    if spread is None:
        return ""
    cell = _number(spread.median)
    if ratio is not None:
        cell += f" [dim]({ratio:.2f}x)[/dim]"
    if spread.min != spread.max:
        cell += f"\n[dim]{_number(spread.min)}-{_number(spread.max)}[/dim]"
    return cell


def _number(value: float) -> str:
    """Write `value` with the three digits that mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
