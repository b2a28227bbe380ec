"""Write what follows from `bench/results.json`: `make bench-docs`.

`docs/reference/benchmarks.md` with its charts in `docs/images`, and `docs/explanation/scaling.md`, which computes from the same
figures what more machines carry. The output depends on that file alone, so that a test can hold the committed pages against it.
"""
# ruff: noqa: INP001  # a script beside the pages it writes, no package

import json
import math
import sys
from html import escape
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).parent
RESULTS: Final = DOCS.parent / "bench/results.json"
NOTICE: Final = (
    "<!-- Written by docs/benchmarks.py (`make bench-docs`) from bench/results.json; edit those instead. -->"
)
QUICK: Final = (
    "> **A quick look, not a measurement**: few messages, one run, on a machine that did other work. It shows that the row works.\n"
    "> `make bench-full` measures it.\n"
)
Table = dict[str, Any]
"""One table of the results, see `bench.report.Comparison`."""

CHARTS: Final = {
    "mail": (("delivered_per_s", "delivered a second"), ("cpu_s_per_1000", "CPU-seconds per 1,000")),
    "starttls": (("delivered_per_s", "delivered a second"),),
    "template": (("delivered_per_s", "delivered a second"),),
    "flood": (("accept_to_hop_p99_ms", "acceptance to hop, 99th percentile, ms"),),
    "backlog": (("to_empty", "delivered a second, times that of an empty service beside it"),),
    "slow_hop": (),
    "stalled_hop": (("delivered_per_s", "delivered a second"),),
    "scale": (("delivered_per_s", "delivered a second"),),
    "big": (),
}
"""The charts of each row, in the order of the page."""


def pages() -> dict[str, str]:
    """Return every file that is written: path below `docs` -> text."""
    results = json.loads(RESULTS.read_bytes())
    tables: dict[str, Table] = results["tables"]
    texts = {
        "reference/benchmarks.md": f"{NOTICE}\n\n{_benchmarks(tables, results['labels'])}",
        "explanation/scaling.md": f"{NOTICE}\n\n{_scaling(tables)}",
    }
    for row, charts in CHARTS.items():
        for figure, title in charts if row in tables else ():
            texts[f"images/bench-{row}-{figure}.svg"] = _bars(title, _spreads(tables[row], figure))
    return texts


# -- the figures ---------------------------------------------------------------------------------------------------


def _benchmarks(tables: dict[str, Table], labels: dict[str, str]) -> str:
    sections = [_section(row, tables[row], labels) for row in CHARTS if row in tables]
    return f"""# Benchmarks

Mail in to next hop, the whole product: validation, idempotency, rendering, MIME, an outcome for each recipient, telemetry
exported to an OTLP receiver, PostgreSQL with `fsync`, `synchronous_commit` and `full_page_writes` on. Postfix gets the same mail, the
same next hop and the same disk, in the same run. Load client, next hop and receiver are processes of their own, and their
CPU is in no figure but their own.

`make bench` measures the first rows, `make bench-full` all of them, `make bench-docs` writes this page. How much *your* deployment carries
says [`mailkeep bench`](../how-to/measure-your-deployment.md). What more machines carry is [computed from this](../explanation/scaling.md).

{"".join(sections).strip()}
"""


def _section(row: str, table: Table, labels: dict[str, str]) -> str:
    charts = "".join(
        f"![{escape(table['title'])}: {title}](../images/bench-{row}-{figure}.svg)\n\n"
        for figure, title in CHARTS[row]
    )
    columns = list(table["summary"])
    head = f"| | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}\n"
    lines = []
    for figure, label in labels.items():
        cells = [_cell(table, column, figure) for column in columns]
        if any(cells):
            lines.append(f"| {label} | {' | '.join(cells)} |\n")
    facts = "".join(f"- {name}: {fact}\n" for name, fact in table["facts"].items())
    rounds = len(table["runs"][table["base"]])
    runs = "One run" if rounds == 1 else f"Medians of {rounds} runs (min to max)"
    note = f"{runs}, and how many times that of {table['base']}.\n"
    quick = f"{QUICK}\n" if table["quick"] else ""
    title = table["title"][0].upper() + table["title"][1:]
    details = f"<details><summary>Hardware, versions, load</summary>\n\n{facts}\n</details>\n"
    return f"## {title}\n\n{quick}{charts}{note}\n{head}{''.join(lines)}\n{_waits(table)}{details}\n"


def _waits(table: Table) -> str:
    """Say what PostgreSQL's sessions waited for, in the last run of each column."""
    seen = {column: runs[-1].get("waits") for column, runs in table["runs"].items()}
    told = [
        f"- {column}: {', '.join(f'{wait} {_number(count)}' for wait, count in waits.items())}\n"
        for column, waits in seen.items()
        if waits
    ]
    return f"Sessions of PostgreSQL that wait, on average, and for what:\n\n{''.join(told)}\n" if told else ""


def _cell(table: Table, column: str, figure: str) -> str:
    spread = table["summary"][column].get(figure)
    if spread is None:
        return ""
    text = _number(spread["median"])
    if spread["min"] != spread["max"]:
        text += f" ({_number(spread['min'])} to {_number(spread['max'])})"
    ratio = table["ratios"].get(column, {}).get(figure)
    return text if ratio is None else f"{text}, {ratio:.2f} x"


def _spreads(table: Table, figure: str) -> dict[str, dict[str, float]]:
    return {column: spreads[figure] for column, spreads in table["summary"].items() if figure in spreads}


def _number(value: float) -> str:
    """Write `value` with the three digits that mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# -- charts --------------------------------------------------------------------------------------------------------

_NAME_PX: Final = 210
_BAR_PX: Final = 400
_VALUE_PX: Final = 130
_ROW_PX: Final = 30
_TOP_PX: Final = 36
_STYLE: Final = (
    "text{font:13px system-ui,sans-serif;fill:#1f2937}.title{font-weight:600}.bar{fill:#2563eb}.base{fill:#9ca3af}"
    ".span{stroke:#111827;stroke-width:1.5}@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.bar{fill:#60a5fa}"
    ".base{fill:#6b7280}.span{stroke:#f9fafb}}"
)


def _bars(title: str, spreads: dict[str, dict[str, float]]) -> str:
    """Return horizontal bars of the medians, each with a line from min to max; the first is the base, in grey."""
    top = max(spread["max"] for spread in spreads.values()) or 1.0
    width, height = _NAME_PX + _BAR_PX + _VALUE_PX, _TOP_PX + _ROW_PX * len(spreads) + 6
    parts = [f'<text class="title" x="8" y="20">{escape(title)}</text>']
    for place, (name, spread) in enumerate(spreads.items()):
        y = _TOP_PX + place * _ROW_PX
        low, middle, high = (_NAME_PX + spread[which] / top * _BAR_PX for which in ("min", "median", "max"))
        kind = "base" if place == 0 else "bar"
        parts += [
            f'<text x="{_NAME_PX - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{_NAME_PX}" y="{y}" width="{middle - _NAME_PX:.1f}" height="20" rx="3"/>',
            f'<text x="{high + 8:.1f}" y="{y + 15}">{_number(spread["median"])}</text>',
        ]
        if high > low:
            parts.append(f'<path class="span" d="M{low:.1f} {y + 10}H{high:.1f}"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">\n'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


# -- what more machines carry --------------------------------------------------------------------------------------

DAY_S: Final = 86_400
PEAK: Final = 3
"""The busiest hour over the average of the day: an assumption, of mail that people cause."""
USED: Final = 0.6
"""The share of a core that is planned for: an assumption, so that latency stays what it is."""
BIG_SERVER_CORES: Final = 64
"""Of one PostgreSQL server that can be bought or rented everywhere."""
CONSTANT_CORES: Final = 16
"""Up to which one PostgreSQL is assumed to scale by its cores; beyond it half of each more is counted."""
VOLUMES: Final = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)


def _scaling(tables: dict[str, Table]) -> str:
    scale = tables["scale"]
    one = scale["summary"][scale["base"]]
    service_s = one["service_cpu_s_per_1000"]["median"] / 1000
    postgres_s = _dearest_postgres_s(tables)
    wal_bytes = one["wal_bytes_per_message"]["median"]
    payload_bytes = one["message_bytes"]["median"]
    curve = "".join(
        f"| {column} | {_number(seen['delivered_per_s']['median'])} | {_ms(seen, 'service_cpu_s_per_1000')}"
        f" | {_ms(seen, 'postgres_cpu_s_per_1000')} | {_number(seen['waiting_sessions']['median'])}"
        f" | {_number(seen['wal_bytes_per_message']['median'])} |\n"
        for column, seen in scale["summary"].items()
    )
    volumes = "".join(_volume(volume, service_s, postgres_s, wal_bytes, payload_bytes) for volume in VOLUMES)
    quick = f"{QUICK}\n" if scale["quick"] else ""
    return f"""# Scaling: what more machines carry

What is **measured** comes from [one machine](../reference/benchmarks.md), figures that `make bench-full` renews. What is **arithmetic** is
marked so: nobody has run it here. It says where the next limit lies, and which engine that exists already takes it from there.

{quick}## Measured: replicas on one PostgreSQL

{scale["facts"]["machine"]}, which service, PostgreSQL, load client and next hop share; a mail of {_number(payload_bytes)} bytes, over HTTP.

| | delivered/s | CPU of the service, ms a mail | CPU of PostgreSQL, ms a mail | its sessions that wait | bytes of WAL a mail |
| --- | ---: | ---: | ---: | ---: | ---: |
{curve}
{_bend(scale)} A mail of {_number(payload_bytes)} bytes writes {_number(wal_bytes)} bytes of WAL, {wal_bytes / payload_bytes:.2f}
times itself: it is stored once, and everything else about it is small.

## Arithmetic: where the limits are

- **A replica** is one process and uses one core: 1 / {service_s * 1000:.2f} ms = {_number(1 / service_s)} mails a second, {_number(USED / service_s)} at
  {USED:.0%}. Replicas share nothing but the queue, so N of them carry N times that, until PostgreSQL is the limit. Add
  machines; nothing else changes.
- **A core of PostgreSQL** carries 1 / {postgres_s * 1000:.2f} ms = {_number(1 / postgres_s)} mails a second, {_number(USED / postgres_s)} at {USED:.0%}. That is the
  dearest mail that was measured: with several replicas, whose groups are smaller, or [with a full queue and a long
  history](../reference/benchmarks.md#a-full-queue-and-a-long-history). It is one server: up to {CONSTANT_CORES} cores we count each in full, of more the half.
- **Its log** takes {_number(wal_bytes)} bytes a mail. Commits are grouped, so that flushes grow slower than mail; 1,000 mails a second are
  {wal_bytes * 1000 / 1e6:.1f} MB/s of WAL, for a disk and for each standby.
- **Its disk** keeps contents for `MAIL_PAYLOAD_RETENTION` (7 days) and the rest for `MAIL_DELIVERY_RETENTION` (30 days).

## Arithmetic: up to a billion a day

The peak is taken as {PEAK} times the average, cores are used to {USED:.0%}; both are assumptions. Storage is contents of {_number(payload_bytes)} bytes for 7
days, without their rows and indexes.

| mails a day | average/s | peak/s | cores for replicas | cores for PostgreSQL | WAL at the peak | contents kept | who carries it |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
{volumes}
## Which engine does the rest

Mailkeep scales by what its database does already, and adds no cluster of its own.

| limit | engine | what it costs |
| --- | --- | --- |
| history grows | **partitioning**, built in: a day is a table, retention drops it | each day kept is a table that plans look at: measured, in the backlog's row |
| a server dies | **Patroni** or a managed PostgreSQL: a standby takes over, replicas reconnect ([how to](../how-to/run-with-patroni.md)) | a synchronous standby adds its round trip to each group commit |
| connections | **PgBouncer** in transaction mode ([how to](../how-to/run-with-patroni.md)) | nothing: no session state in the hot path |
| operators read much | **read replicas**: reports and the commands that only read go to a standby | not tried here; what they show is a moment old |
| one PostgreSQL is full | **several queues**: each a PostgreSQL with its own replicas, behind one name in DNS or a balancer | idempotency holds within a queue: a producer repeats a call to the queue it began with (one stream or one host each) |
| one queue must be larger than one server | **Citus**, distributed by the delivery's id | not tried here: the statements write a delivery's rows together, but `idempotency_keys` has a key of its own, which would have to be co-located |
| the stream is full | **Redis Cluster or several Redis**, one stream a queue | a producer chooses its stream |
| the next hop is slow | more connections ([measured](../reference/benchmarks.md)): connections / latency is the limit, not Mailkeep | the hop's own limits |

Where one server is not enough, several queues are the plain way: they need no engine that is not used at the first million, fail apart from each other,
and each can be measured alone with [`mailkeep bench`](../how-to/measure-your-deployment.md).
"""


def _dearest_postgres_s(tables: dict[str, Table]) -> float:
    """Return the most that a mail cost PostgreSQL with several replicas or a backlog, but for columns in which retention swept."""
    columns = [*tables["scale"]["summary"].values()]
    columns += [seen for seen in tables["backlog"]["summary"].values() if "queue_s" in seen]
    return max(seen["postgres_cpu_s_per_1000"]["median"] for seen in columns) / 1000


def _ms(seen: dict[str, dict[str, float]], figure: str) -> str:
    return f"{seen[figure]['median']:.2f}"  # seconds per 1,000 are milliseconds each


def _bend(scale: Table) -> str:
    """Say where the curve of replicas bends."""
    rates = {column: seen["delivered_per_s"]["median"] for column, seen in scale["summary"].items()}
    best = max(rates, key=lambda column: rates[column])
    gain = rates[best] / rates[scale["base"]]
    return (
        f"The curve is highest with {best}, at {gain:.2f} times one. From there on this machine's cores are the limit: they are"
        " shared by everything that takes part."
    )


def _volume(volume: int, service_s: float, postgres_s: float, wal_bytes: float, payload_bytes: float) -> str:
    average_per_s = volume / DAY_S
    peak_per_s = PEAK * average_per_s
    postgres_cores = peak_per_s * postgres_s / USED
    wal_mb_per_s = peak_per_s * wal_bytes / 1e6
    kept_gb = volume * 7 * payload_bytes / 1e9
    return (
        f"| {volume:,} | {_number(average_per_s)} | {_number(peak_per_s)} | {math.ceil(peak_per_s * service_s / USED):,}"
        f" | {math.ceil(postgres_cores):,} | {_number(wal_mb_per_s)} MB/s | {_number(kept_gb)} GB | {_engine(postgres_cores)} |\n"
    )


def _engine(cores: float) -> str:
    """Say what carries so many cores' worth of PostgreSQL."""
    of_one_server = CONSTANT_CORES + (BIG_SERVER_CORES - CONSTANT_CORES) / 2
    if cores <= 1:
        return "the smallest server there is"
    if cores <= CONSTANT_CORES:
        return "one PostgreSQL, with a standby"
    if cores <= of_one_server:
        return f"one PostgreSQL of up to {BIG_SERVER_CORES} cores, with a standby"
    return f"{math.ceil(cores / CONSTANT_CORES)} queues of {CONSTANT_CORES} cores each, or {math.ceil(cores / of_one_server)} of {BIG_SERVER_CORES}"


def main() -> None:
    """Write the pages."""
    for path, text in pages().items():
        (DOCS / path).write_text(text, encoding="utf-8")
        print(f"docs/{path}", file=sys.stderr)  # noqa: T201  # a command says what it did


if __name__ == "__main__":
    main()
