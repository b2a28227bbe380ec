"""`mailkeep dead-letters`: what was given up and needs a person.

Exit codes: 0 done, 2 wrong usage, 69 PostgreSQL is away, 78 bad configuration.
"""

from typing import Annotated, Final
from uuid import UUID

import typer

USUAL_LIMIT: Final = 50
MAX_LIMIT: Final = 200
TITLES: Final = ("ID", "BURIED", "CLASS", "CAUSE", "ATTEMPTS", "DOMAIN", "REASON")


def dead_letters(
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

    `mailkeep explain ID` tells more of one, `mailkeep queue resend ID --reason …` sends its content once more.
    """
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
