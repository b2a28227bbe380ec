"""`mailkeep suppressions`: addresses that get no mail; list them, add and remove some, import and export."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar
from uuid import UUID

import typer

from mailkeep.cli._given import Actor, actor_of, expiry_s

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from mailkeep.core.suppression import NewSuppression
    from mailkeep.operator.suppressions import OperatorSuppressions
    from mailkeep.store.suppressions import Suppression

USUAL_LIMIT: Final = 100
MAX_LIMIT: Final = 10_000  # rows that a table still shows sensibly
TITLES: Final = ("ADDRESS", "REASON", "SINCE", "UNTIL", "BY", "EVIDENCE")
JSON_LINES: Final = "jsonl"
FORMATS: Final = ("csv", JSON_LINES)

T = TypeVar("T")

app = typer.Typer(
    help="Look at addresses that get no mail; add, remove, import and export them. They are shown in clear.",
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Addresses = Annotated[list[str], typer.Argument(metavar="ADDRESS…", help="Addresses.")]
Wanted = Annotated[str | None, typer.Option("--reason", help="hard_bounce, complaint or manual.")]
Reason = Annotated[str, typer.Option(help="hard_bounce, complaint or manual.")]
ExpiresIn = Annotated[
    str | None, typer.Option(help="How long, such as 30d.", show_default="until it is removed")
]
Note = Annotated[str, typer.Option(help="What you know; kept as its evidence, and recorded with your name.")]
Format = Annotated[
    str | None,
    typer.Option("--format", help="csv or jsonl.", show_default="by the name of the file, else csv"),
]


@app.command("list")
def list_suppressions(
    *,
    recipient: Annotated[str | None, typer.Option(help="One address.")] = None,
    reason: Wanted = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Suppressions to list.")] = USUAL_LIMIT,
    as_json: Json = False,
) -> None:
    """List suppressed addresses, the newest first; times are UTC."""
    from mailkeep.cli.output import print_json, table

    found = _ask(lambda suppressions: _listed(suppressions, limit + 1, recipient, reason))
    shown = found[:limit]
    if as_json:
        print_json(shown)
    elif not shown:
        print("No suppression matches." if recipient or reason else "Nothing is suppressed.")
    else:
        print(table(TITLES, map(_row, shown)))
        more = f"; there are more (--limit {MAX_LIMIT}, or export)" if len(found) > limit else ""
        print(f"-- {len(shown)} suppressions{more}")


@app.command()
def add(
    addresses: Addresses,
    *,
    note: Note,
    reason: Reason = "manual",
    expires_in: ExpiresIn = None,
    actor: Actor = None,
) -> None:
    """Suppress addresses: no mail goes there, login codes neither.

    One that is suppressed for as long already stays as it is. For example

      mailkeep suppressions add ann@example.org --note 'left the company'
    """
    from mailkeep.core.suppression import NewSuppression
    from mailkeep.operator.suppressions import parse_address, parse_reason

    async def run(suppressions: "OperatorSuppressions") -> int:
        batch = [
            NewSuppression(parse_address(text, "address"), parse_reason(reason), _checked_note(note))
            for text in addresses
        ]
        return await _add_all(suppressions, batch, actor, expires_in)

    _say_added(_ask(run), len(addresses))


@app.command()
def remove(addresses: Addresses, *, note: Note, actor: Actor = None) -> None:
    """Let addresses get mail again; ids of suppressions name them, too.

    For example `mailkeep suppressions remove ann@example.org --note 'mailbox is back'`.
    """
    from mailkeep.cli.output import fail

    async def run(suppressions: "OperatorSuppressions") -> list[str]:
        by = {"actor": actor_of(actor), "note": _checked_note(note)}
        return [text for text in addresses if await suppressions.remove(_named(text), **by) is None]

    missing = _ask(run)
    if len(missing) < len(addresses):
        print(f"{len(addresses) - len(missing)} removed")
    if missing:
        fail("\n".join(f"{text} is not suppressed" for text in missing))


@app.command("import")
def import_file(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="CSV or JSON Lines; - for standard input.", allow_dash=True)
    ],
    *,
    note: Note = "imported",
    reason: Reason = "manual",
    expires_in: ExpiresIn = None,
    as_format: Format = None,
    actor: Actor = None,
) -> None:
    """Suppress the addresses of a file: all of them, or none where a line is wrong.

    CSV has a line of titles: address and, where wanted, reason, evidence, expires_at; or bare addresses, one a line. JSON
    Lines has an object with these members on each line. The options are for what a line leaves out. An import that was
    interrupted is begun anew: what is there already stays as it is. For example

      mailkeep suppressions import bounced.csv --reason hard_bounce --expires-in 90d
    """
    import sys
    from contextlib import nullcontext

    from mailkeep.cli.output import fail
    from mailkeep.operator.suppression_file import SuppressionFileError, lines_of, read_suppressions
    from mailkeep.operator.suppressions import parse_reason

    async def run(suppressions: "OperatorSuppressions") -> tuple[int, int]:
        usual = parse_reason(reason)
        with nullcontext(sys.stdin) if str(path) == "-" else path.open(encoding="utf-8", newline="") as file:
            read = read_suppressions(
                lines_of(file), json=_is_json(as_format, path), reason=usual, evidence=_checked_note(note)
            )
        return await _add_all(suppressions, read, actor, expires_in), len(read)

    try:
        added, of = _ask(run)
    except SuppressionFileError as fault:
        fail("\n".join([f"{path} can't be imported; nothing was", *fault.faults]))
    except (OSError, UnicodeDecodeError) as fault:
        fail(f"{path} can't be read: {fault.strerror if isinstance(fault, OSError) else 'it is not UTF-8'}")
    _say_added(added, of)


@app.command()
def export(
    *,
    reason: Wanted = None,
    as_format: Annotated[str, typer.Option("--format", help="csv or jsonl.")] = "csv",
) -> None:
    """Write every suppressed address to standard output, the newest first, as `import` reads it.

    For example `mailkeep suppressions export > suppressed.csv`. JSON Lines has all that is known of each.
    """
    import sys

    from mailkeep.operator.suppression_file import json_line, write_csv

    as_json = _is_json(as_format, None)

    async def run(suppressions: "OperatorSuppressions") -> None:
        if not as_json:
            write_csv((), sys.stdout, titles=True)
        async for suppression in suppressions.everything(reason):
            if as_json:
                print(json_line(suppression))
            else:
                write_csv((suppression,), sys.stdout, titles=False)

    _ask(run)


def _ask(question: "Callable[[OperatorSuppressions], Awaitable[T]]") -> T:
    from mailkeep.cli._store import ask_store
    from mailkeep.operator.suppressions import OperatorSuppressions

    return ask_store(lambda store: question(OperatorSuppressions(store)))


async def _listed(
    suppressions: "OperatorSuppressions", limit: int, recipient: str | None, reason: str | None
) -> "list[Suppression]":
    from mailkeep.operator.suppressions import MAX_PAGE

    found: list[Suppression] = []
    cursor = None
    while len(found) < limit:
        wanted = min(limit - len(found), MAX_PAGE)
        page = await suppressions.page(wanted, cursor, recipient=recipient, reason=reason)
        found += page.suppressions
        cursor = page.cursor
        if cursor is None:
            break
    return found


async def _add_all(
    suppressions: "OperatorSuppressions",
    batch: "Sequence[NewSuppression]",
    actor: str | None,
    expires_in: str | None,
) -> int:
    from mailkeep.operator.suppressions import ADD_BATCH

    expires_in_s = expiry_s(expires_in)
    by, added = actor_of(actor), 0
    for begin in _with_progress(range(0, len(batch), ADD_BATCH), len(batch)):
        part = batch[begin : begin + ADD_BATCH]
        added += await suppressions.add(part, actor=by, expires_in_s=expires_in_s)
    return added


def _with_progress(begins: range, of: int) -> "Iterator[int]":
    """Yield `begins`, and tell a terminal how far it is; a program that reads along gets no such lines."""
    import sys

    shown = len(begins) > 1 and sys.stderr.isatty()
    for begin in begins:
        if shown:
            print(f"\r{begin} of {of}", end="", file=sys.stderr, flush=True)
        yield begin
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _say_added(added: int, of: int) -> None:
    rest = f"; {of - added} were already, or had expired" if added < of else ""
    print(f"{added} suppressed{rest}")


def _named(text: str) -> UUID | str:
    try:
        return UUID(text)
    except ValueError:
        return text


def _checked_note(note: str) -> str:
    from mailkeep.core.suppression import MAX_EVIDENCE_CHARS

    if not 1 <= len(note) <= MAX_EVIDENCE_CHARS or not note.isprintable():
        raise typer.BadParameter(f"--note takes 1 to {MAX_EVIDENCE_CHARS} printable characters")
    return note


def _is_json(wanted: str | None, path: Path | None) -> bool:
    if wanted is not None and wanted not in FORMATS:
        raise typer.BadParameter(f"--format is one of: {', '.join(FORMATS)}")
    return wanted == JSON_LINES if wanted or path is None else path.suffix in {".jsonl", ".ndjson", ".json"}


def _row(suppression: "Suppression") -> tuple[object, ...]:
    return (
        suppression.address,
        suppression.reason,
        _instant(suppression.created_at),
        _instant(suppression.expires_at) if suppression.expires_at else "removed",
        suppression.actor or f"delivery {suppression.delivery_id}",
        suppression.evidence,
    )


def _instant(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S}"
