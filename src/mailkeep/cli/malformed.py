"""`mailkeep malformed`: commands from the stream and from SQL that could not be taken; look at them, repair, replay."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final, TypeVar
from uuid import UUID

import typer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from mailkeep.operator.malformed import MalformedView, OperatorMalformed

USUAL_LIMIT: Final = 50
MAX_LIMIT: Final = 10_000  # rows that a table still shows sensibly
REPLAY_WAIT_S: Final = 10.0
"""A running service takes a replay within a second; longer waiting means that none runs."""
LOOK_S: Final = 0.1
TITLES: Final = ("ID", "REJECTED", "INTAKE", "SOURCE", "CODE", "STATE", "FIELD AND REASON")

T = TypeVar("T")

app = typer.Typer(
    help="Look at commands that could not be taken, repair and replay them.", no_args_is_help=True
)

Id = Annotated[UUID, typer.Argument(metavar="ID", help="The record's id.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Code = Annotated[str | None, typer.Option(help="Failure code, such as unknown_template.")]
Source = Annotated[str | None, typer.Option(help="Source as the command named it.")]


@app.command("list")
def list_malformed(
    *,
    code: Code = None,
    source: Source = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Records to list.")] = USUAL_LIMIT,
    as_json: Json = False,
) -> None:
    """List malformed commands, the newest first; times are UTC."""
    from mailkeep.cli.output import print_json, table

    found = _ask(lambda malformed: _listed(malformed, limit + 1, code, source))
    shown = found[:limit]
    if as_json:
        print_json(shown)
    elif not shown:
        print("No malformed command matches." if code or source else "There are no malformed commands.")
    else:
        print(table(TITLES, map(_row, shown)))
        more = f"; there are more (--limit {MAX_LIMIT})" if len(found) > limit else ""
        print(f"-- {len(shown)} malformed commands{more}")


@app.command()
def show(
    record_id: Id,
    *,
    raw: Annotated[bool, typer.Option(help="Print its fields too, addresses and content in clear.")] = False,
    as_json: Json = False,
) -> None:
    """Show one malformed command."""
    from mailkeep.cli.output import fail, print_json, printable

    async def both(malformed: "OperatorMalformed") -> "tuple[MalformedView | None, dict[bytes, bytes]]":
        return await malformed.get(record_id), await malformed.raw_fields(record_id) if raw else {}

    view, fields = _ask(both)
    if view is None:
        fail(f"no malformed command has the id {record_id}")
    texts = {_text(name): _text(value) for name, value in fields.items()}
    if as_json:
        print_json({"malformed_command": view, **({"fields": texts} if raw else {})})
        return
    for name, value in (*_facts(view), *texts.items()):
        if value is not None:
            print(printable(f"{name:<15} {value}"))


@app.command()
def replay(
    record_id: Annotated[UUID | None, typer.Argument(metavar="[ID]", help="The record's id.")] = None,
    *,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="field=value: repair a field; without value, leave it out. Repeatable."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All of the --code that can be replayed.")
    ] = False,
    code: Code = None,
    source: Source = None,
) -> None:
    """Have a malformed command taken again by the running service, as its intake would take it.

    Its source, key and delivery id stay unless they are repaired, so that it can't be sent twice; an id older than 7 days
    is replaced. For example:

      mailkeep malformed replay ID --set idempotency_key=order-10042

      mailkeep malformed replay --all --code unknown_template
    """
    from mailkeep.cli.output import fail

    repairs = dict(map(_repair, sets or ()))
    if (record_id is None) != everything or everything == (code is None) or (source and not everything):
        raise typer.BadParameter("give either an ID, or --all with --code (and --source)")
    if record_id is None:
        views = _ask(lambda malformed: _replay_all(malformed, code, source, repairs))
    else:
        views = [_ask(lambda malformed: _replay_one(malformed, record_id, repairs))]
    for view in views:
        print(view.id, _ending(view))
    if not all(view.state == "replayed" for view in views):
        fail(f"{sum(view.state != 'replayed' for view in views)} of {len(views)} were not replayed")


def _ask(question: "Callable[[OperatorMalformed], Awaitable[T]]") -> T:
    from mailkeep.cli._store import ask_store
    from mailkeep.operator.malformed import OperatorMalformed

    return ask_store(lambda store: question(OperatorMalformed(store)))


async def _listed(
    malformed: "OperatorMalformed", limit: int, code: str | None, source: str | None
) -> "list[MalformedView]":
    from mailkeep.operator.malformed import MAX_PAGE

    found: list[MalformedView] = []
    cursor = None
    while len(found) < limit:
        page = await malformed.page(min(limit - len(found), MAX_PAGE), cursor, code=code, source=source)
        found += page.malformed_commands
        cursor = page.cursor
        if cursor is None:
            break
    return found


async def _replay_one(
    malformed: "OperatorMalformed", record_id: UUID, repairs: "Mapping[str, str | None]"
) -> "MalformedView":
    from mailkeep.cli.output import fail

    view = await malformed.get(record_id)
    if view is None:
        fail(f"no malformed command has the id {record_id}")
    if view.cut:
        fail(
            f"{record_id} was too large to be kept whole and can't be replayed; have its producer send it again"
        )
    if not await malformed.ask_replay(record_id, repairs):
        fail(f"{record_id} can't be replayed: {_ending(await malformed.get(record_id) or view)}")
    (view,) = await _outcomes(malformed, [record_id])
    return view


async def _replay_all(
    malformed: "OperatorMalformed", code: str | None, source: str | None, repairs: "Mapping[str, str | None]"
) -> "list[MalformedView]":
    found = await _listed(malformed, MAX_LIMIT, code, source)
    asked = [
        view.id for view in found if view.can_be_replayed and await malformed.ask_replay(view.id, repairs)
    ]
    return await _outcomes(malformed, asked)


async def _outcomes(malformed: "OperatorMalformed", record_ids: "Sequence[UUID]") -> "list[MalformedView]":
    import asyncio
    import time

    ended: list[MalformedView] = []
    looked_at = time.monotonic()
    for record_id in record_ids:
        while (view := await malformed.get(record_id)) and view.state == "replay_waits":
            if time.monotonic() - looked_at > REPLAY_WAIT_S:
                break
            await asyncio.sleep(LOOK_S)
        else:
            looked_at = time.monotonic()
        ended += [view] if view else []
    return ended


def _repair(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    if not name or not equals or not text.isprintable():
        raise typer.BadParameter(f"--set takes field=value, not {text!r}")
    return name, value or None


def _row(view: "MalformedView") -> tuple[object, ...]:
    reason = f"{view.field} {view.message}".strip()
    return (
        view.id,
        _instant(view.rejected_at),
        view.intake,
        view.source or "-",
        view.failure_code,
        view.state,
        reason,
    )


def _facts(view: "MalformedView") -> "Iterator[tuple[str, object]]":
    yield "id", view.id
    yield "state", view.state
    yield "rejected", _instant(view.rejected_at)
    yield "intake", f"{view.intake}, entry {view.entry_id}"
    yield "source", view.source
    yield "delivery id", view.delivery_id
    yield "code", view.failure_code
    yield "field", view.field or None
    yield "reason", view.message
    yield "cut", "too large to be kept whole; can't be replayed" if view.cut else None
    yield "replay", _ending(view) if view.state != "rejected" else None


def _ending(view: "MalformedView") -> str:
    match view.state:
        case "replayed":
            return f"replayed as delivery {view.replayed_as}"
        case "refused_again":
            return f"refused again: {view.replay_refusal}"
        case "replay_waits":
            return "its replay waits for a running service"
        case _:
            return "not replayed"


def _instant(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S}"


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")
