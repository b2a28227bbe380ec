"""`mailkeep events`: what became of deliveries, in the order in which programs and webhooks are told it.

Exit codes: 0 done, 2 wrong usage, 69 PostgreSQL is away, 78 bad configuration.
"""

from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from mailkeep.core.event import Event
    from mailkeep.operator.events import OperatorEvents
    from mailkeep.store.postgres import Store

USUAL_LIMIT: Final = 20
MAX_LIMIT: Final = 1000
FOLLOW_S: Final = 1.0


def events(
    *,
    types: Annotated[
        list[str] | None, typer.Option("--type", help="Such as delivery.failed; may be repeated.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="Go on after this cursor.", show_default="the last ones")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Events to look at.")] = USUAL_LIMIT,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what happens, until interrupted.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --follow one event a line.")
    ] = False,
) -> None:
    """Show what became of deliveries, the oldest first; times are UTC.

    For example `mailkeep events --follow --type delivery.failed --type delivery.dead_letter`.
    """
    from mailkeep.cli._store import ask_store
    from mailkeep.operator.events import OperatorEvents

    async def run(store: "Store") -> None:
        reader = OperatorEvents(store)
        begin = after or await reader.before_last(limit)
        await _print(reader, begin, limit, tuple(types or ()), follow=follow, as_json=as_json)

    try:
        ask_store(run)
    except KeyboardInterrupt:
        raise typer.Exit from None


async def _print(
    reader: "OperatorEvents", cursor: str, limit: int, types: tuple[str, ...], *, follow: bool, as_json: bool
) -> None:
    import asyncio

    import msgspec

    from mailkeep.cli.output import print_json, printable

    while True:
        page = await reader.page(limit, cursor, types)
        if as_json and not follow:
            print_json(page)
        for event in page.events:
            if not as_json:
                print(printable(_line(event)), flush=True)
            elif follow:
                print(msgspec.json.encode(event).decode(), flush=True)
        at_end, cursor = page.after == cursor, page.after
        if not follow:
            break
        if at_end:
            await asyncio.sleep(FOLLOW_S)
    if not as_json:
        print(f"-- go on: --after {cursor}")


def _line(event: "Event") -> str:
    data = event.data
    because = data.cause or data.rule
    return (
        f"{event.timestamp:%Y-%m-%d %H:%M:%S}  {data.status:<11}  {data.delivery_id}  {data.source}/{data.delivery_class}"
        f"  attempts {data.attempts}" + (f"  {because}" if because else "")
    )
