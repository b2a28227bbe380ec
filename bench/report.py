"""What the runs say together: min, median and max of each figure, and Mailkeep's median over Postfix's."""

import statistics
from typing import Final

import msgspec
from rich.console import Console
from rich.table import Table

from bench.run import Figures

LABELS: Final = {
    "accepted_per_s": "accepted/s",
    "delivered_per_s": "delivered/s",
    "cpu_s_per_1000": "CPU-s per 1,000",
    "peak_memory_mb": "peak memory (PSS), MB",
    "request_to_hop_p50_ms": "request to hop, p50 ms",
    "request_to_hop_p99_ms": "request to hop, p99 ms",
    "accept_to_hop_p50_ms": "acceptance to hop, p50 ms",
    "accept_to_hop_p99_ms": "acceptance to hop, p99 ms",
    "lost": "lost",
    "duplicated": "duplicated",
    "message_bytes": "bytes a message at the hop",
    "elsewhere_cores": "cores busy elsewhere",
}
"""What each figure is called; the four to the next hop are at 10 a second, the last is kernel and other programs."""
RATIOS: Final = tuple(LABELS)[:8]
"""Figures of which a ratio means something."""


class Spread(msgspec.Struct, frozen=True):
    """One figure over the rounds."""

    min: float
    median: float
    max: float


class Report(msgspec.Struct, frozen=True):
    """All of it, as `--json` writes it. `runs` and `summary` go by peer; `ratios` are medians over the median of `base`."""

    facts: dict[str, str]
    runs: dict[str, list[Figures]]
    summary: dict[str, dict[str, Spread]]
    base: str
    ratios: dict[str, dict[str, float]]


def summarise(facts: dict[str, str], runs: dict[str, list[Figures]]) -> Report:
    """Put the runs together; the first peer is the base of the ratios."""
    summary = {peer: _spreads(figures) for peer, figures in runs.items()}
    base, *others = summary
    ratios = {
        peer: {name: summary[peer][name].median / summary[base][name].median for name in RATIOS}
        for peer in others
    }
    return Report(facts, runs, summary, base, ratios)


def _spreads(runs: list[Figures]) -> dict[str, Spread]:
    columns = {name: [getattr(figures, name) for figures in runs] for name in LABELS}
    return {
        name: Spread(min(values), statistics.median(values), max(values)) for name, values in columns.items()
    }


def show(report: Report, console: Console) -> None:
    """Print the report."""
    for name, fact in report.facts.items():
        console.print(f"{name}: {fact}", highlight=False, markup=False)
    rounds = len(report.runs[report.base])
    table = Table(caption=f"median, and min to max, of {rounds} runs each; ratios are of the medians")
    table.add_column("", no_wrap=True)
    for heading in (*report.summary, *(f"{peer} : {report.base}" for peer in report.ratios)):
        table.add_column(heading, justify="right")
    for name, label in LABELS.items():
        cells = [_cell(spreads[name]) for spreads in report.summary.values()]
        cells += [f"{ratios[name]:.2f}" if name in ratios else "" for ratios in report.ratios.values()]
        table.add_row(label, *cells)
    console.print(table)


def _cell(spread: Spread) -> str:
    if spread.min == spread.max:
        return _number(spread.median)
    return f"{_number(spread.median)}\n[dim]{_number(spread.min)}-{_number(spread.max)}[/dim]"


def _number(value: float) -> str:
    """Write `value` with the three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
