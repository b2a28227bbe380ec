"""`mailkeep explain ID`: why a delivery is not sent yet, or how it ended, and what happens next.

Exit codes: 0 done, 1 no such delivery, 69 PostgreSQL is away, 78 bad configuration.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

if TYPE_CHECKING:
    from mailkeep.operator.explain import Explanation
    from mailkeep.store.postgres import Store


def explain(
    delivery_id: Annotated[UUID, typer.Argument(metavar="ID", help="The delivery's id.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Explain why a delivery is not sent yet, or how it ended, and what happens next.

    For example `mailkeep explain 01a20320-a200-7d21-9f53-40a7c2b6e810`; ids are listed by `mailkeep queue`.
    """
    from mailkeep.cli._store import ask_store
    from mailkeep.cli.output import fail, load_settings, print_json, printable
    from mailkeep.operator.explain import OperatorExplain

    ladders = load_settings(find_dev=True).ladders

    async def ask(store: "Store") -> "Explanation | None":
        return await OperatorExplain(store, ladders).explain(delivery_id)

    found = ask_store(ask)
    if found is None:
        fail(f"no delivery has the id {delivery_id}")
    if as_json:
        print_json(found)
        return
    for name, words in _lines(found):
        print(f"{name:<9} {printable(words)}")


def _lines(found: "Explanation") -> Iterator[tuple[str, str]]:
    yield "delivery", f"{found.delivery_id}, {found.status}"
    yield "why", found.why
    at = f", at {found.next_at:%Y-%m-%d %H:%M:%S} UTC" if found.next_at else ""
    yield "next", f"{found.next}{at}"
    if found.expires_at is not None:
        yield "expires", f"{found.expires_at:%Y-%m-%d %H:%M:%S} UTC"
    yield "ladder", f"{found.waits_used} of {found.waits} waits of class {found.delivery_class} used"
    yield "attempts", f"{found.attempts}; see `mailkeep queue show {found.delivery_id}`"
    route = found.route
    out = f", out for {route.out_for} since {route.since:%Y-%m-%d %H:%M:%S} UTC" if route.out_for else ""
    yield "route", f"next hop {route.next_hop}; {route.live_replicas} live replicas{out}"
    last = found.last_attempt
    if last is not None and last.rule is not None:
        yield "rule", f"{last.rule}: {last.severity}, about {last.scope}, at {last.phase}"
    if found.template is not None:
        template = found.template
        locales = " > ".join(template.locale_chain)
        yield "template", f"{template.template_id} in {locales}, catalog {template.catalog_version}"
    for change in found.changes:
        when = f"{change.changed_at:%Y-%m-%d %H:%M:%S}"
        yield "change", f"{when} {change.verb} by {change.actor}: {change.reason}"
