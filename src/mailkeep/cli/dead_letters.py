"""`mailkeep dead-letters`: what was given up and needs a person; list it, send it once more.

Exit codes: 0 done, 2 wrong usage, 69 PostgreSQL is away, 78 bad configuration.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import typer

from mailkeep.cli.queue import Actor

if TYPE_CHECKING:
    from mailkeep.operator.redrive import OperatorRedrive, RedriveAnswer, RedriveRequest
    from mailkeep.store.postgres import Store

USUAL_LIMIT: Final = 50
MAX_LIMIT: Final = 200
TITLES: Final = ("ID", "BURIED", "CLASS", "CAUSE", "ATTEMPTS", "DOMAIN", "REASON")
INSTANTS: Final = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]
CALL_LIMIT: Final = 200
"""Deliveries made between two signs of progress."""

app = typer.Typer(invoke_without_command=True)


@app.callback()
def list_dead_letters(
    context: typer.Context,
    *,
    delivery_class: Annotated[
        str | None, typer.Option("--class", help="auth, transactional or relay.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Who asked for the mail.")] = None,
    rule: Annotated[str | None, typer.Option(help="Rule that the last failure matched.")] = None,
    recipient: Annotated[str | None, typer.Option(help="Address of a recipient, whole.")] = None,
    cursor: Annotated[UUID | None, typer.Option(help="Go on after the last page.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Dead letters to list.")] = USUAL_LIMIT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List dead letters, the newest first; times are UTC.

    `mailkeep explain ID` tells more of one, `mailkeep queue resend ID --reason …` sends its content once more, and
    `mailkeep dead-letters redrive` does so with many.
    """
    if context.invoked_subcommand is not None:
        return
    from mailkeep.cli._store import ask
    from mailkeep.cli.output import print_json, table
    from mailkeep.operator.queue import DeliveryQuery

    wanted = DeliveryQuery(("dead_letter",), source, delivery_class, None, recipient, rule)
    page = ask(lambda queue: queue.page(wanted, limit, cursor))
    if as_json:
        print_json(page)
        return
    rows = [
        (
            view.delivery_id,
            f"{view.dead_letter.buried_at:%Y-%m-%d %H:%M:%S}",
            view.delivery_class,
            view.dead_letter.cause,
            view.attempts,
            view.domain,
            view.dead_letter.reason,
        )
        for view in page.deliveries
        if view.dead_letter is not None
    ]
    print(table(TITLES, rows) if rows else "No dead letter.")
    if page.cursor is not None:
        print(f"-- there are more: --cursor {page.cursor}")


@app.command()
def redrive(
    *,
    why: Annotated[str, typer.Option("--why", help="Why; recorded with your name.")],
    cause: Annotated[str | None, typer.Option(help="ladder_exhausted, poison or operator.")] = None,
    rule: Annotated[str | None, typer.Option(help="Rule that the last failure matched.")] = None,
    domain: Annotated[str | None, typer.Option(help="Domain of the first recipient.")] = None,
    delivery_class: Annotated[
        str | None, typer.Option("--class", help="auth, transactional or relay.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Who asked for the mail.")] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=INSTANTS, help="Buried then or later; UTC.")
    ] = None,
    until: Annotated[datetime | None, typer.Option(formats=INSTANTS, help="Buried before; UTC.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.", show_default="all")] = None,
    rate: Annotated[str, typer.Option(help="How many are due in a second.")] = "10/s",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent; make nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Those, too, that were resent before.")] = False,
    actor: Actor = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Send dead letters once more, the oldest first, to those who did not get them.

    Each becomes a delivery of its own that names its parent. What was resent before is left out, so that a redrive that was
    interrupted is simply repeated (but not with --force). For example

      mailkeep dead-letters redrive --cause ladder_exhausted --domain example.org --since 2026-11-20 --dry-run --why 'relay is back'
    """
    import getpass

    import msgspec

    from mailkeep.cli._store import ask_store
    from mailkeep.cli.output import print_json
    from mailkeep.operator.redrive import OperatorRedrive, RedriveRequest

    asked = {
        "reason": why,
        "actor": actor or getpass.getuser(),
        "cause": cause,
        "rule": rule,
        "domain": domain,
        "class": delivery_class,
        "source": source,
        "since": _utc(since),
        "until": _utc(until),
        "rate_per_s": _rate_per_s(rate),
        "dry_run": dry_run,
        "force": force,
    }
    try:
        request = msgspec.convert(asked, RedriveRequest)
    except msgspec.ValidationError as fault:
        raise typer.BadParameter(str(fault)) from None

    async def run(store: "Store") -> "RedriveAnswer":
        return await _redrive_all(OperatorRedrive(store), request, limit)

    answer = ask_store(run)
    if as_json:
        print_json(answer)
    else:
        _say(answer, dry_run=dry_run)


async def _redrive_all(
    redrive: "OperatorRedrive", request: "RedriveRequest", limit: int | None
) -> "RedriveAnswer":
    """Redrive call by call, and tell a terminal how far it is."""
    import sys

    from msgspec.structs import replace

    from mailkeep.operator.redrive import MAX_SHOWN, RedriveAnswer

    total = RedriveAnswer(0, 0, 0, 0.0, (), None)
    shown = sys.stderr.isatty()
    while True:
        left = CALL_LIMIT if limit is None else min(CALL_LIMIT, limit - total.redriven)
        wait_s = total.redriven / request.rate_per_s
        part = await redrive.redrive(replace(request, limit=left, wait_s=wait_s, cursor=total.cursor))
        total = RedriveAnswer(
            total.redriven + part.redriven,
            total.resent_before + part.resent_before,
            total.erased + part.erased,
            part.last_due_in_s if part.redriven else total.last_due_in_s,
            (*total.deliveries, *part.deliveries)[:MAX_SHOWN],
            part.cursor,
        )
        if total.cursor is None or total.redriven == limit:
            break
        if shown:
            print(f"\r{total.redriven} redriven", end="", file=sys.stderr, flush=True)
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return total


def _say(answer: "RedriveAnswer", *, dry_run: bool) -> None:
    from mailkeep.core.duration import format_duration

    spread = (
        f", the last of them in {format_duration(round(answer.last_due_in_s))}" if answer.redriven > 1 else ""
    )
    print(f"{answer.redriven} dead letters {'would be' if dry_run else 'are'} sent once more{spread}")
    if answer.resent_before:
        print(f"{answer.resent_before} were resent before; --force takes them, too")
    if answer.erased:
        print(f"{answer.erased} have no content any more; the programs that sent them must send them anew")
    for redriven in answer.deliveries[:5]:
        print(f"  {redriven.parent_id}" + (f" -> {redriven.delivery_id}" if redriven.delivery_id else ""))
    if answer.redriven > 5:
        print("  …" if dry_run else "  … `mailkeep queue` shows what waits")


def _rate_per_s(text: str) -> float:
    from mailkeep.operator.redrive import MAX_RATE_PER_S

    try:
        rate_per_s = float(text.removesuffix("/s"))
    except ValueError:
        rate_per_s = 0.0
    if not 0.001 <= rate_per_s <= MAX_RATE_PER_S:  # "nan" is in no range
        raise typer.BadParameter(f"--rate is like 10/s, from 0.001/s to {MAX_RATE_PER_S:g}/s")
    return rate_per_s


def _utc(instant: datetime | None) -> datetime | None:
    from datetime import UTC

    return instant.replace(tzinfo=UTC) if instant is not None and instant.tzinfo is None else instant
