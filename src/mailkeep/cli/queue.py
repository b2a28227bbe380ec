"""`mailkeep queue`: the `mailq` of every replica, since all of them see one queue in PostgreSQL."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mailkeep.operator.changes import Why
    from mailkeep.operator.queue import AttemptView, DeliveryView, OperatorQueue, ReplicaView
    from mailkeep.store.postgres import Store
    from mailkeep.store.reads import StoredChange

USUAL_LIMIT: Final = 100
USUAL_ROWS: Final = 20
MAX_LIMIT: Final = 10_000  # rows that a table still shows sensibly
TITLES: Final = ("ID", "SIZE", "ACCEPTED", "CLASS", "STATUS", "NEXT ATTEMPT", "RECIPIENT", "REASON")

app = typer.Typer(
    help="Show, flush and change what waits, is being sent or is held; without a command, list it.",
    invoke_without_command=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Actor = Annotated[str | None, typer.Option("--as", help="Who does it.", show_default="your login name")]


@app.callback()
def list_queue(
    context: typer.Context,
    *,
    status: Annotated[
        list[str] | None, typer.Option(help="waiting, queued, rendered, sending or held; may be repeated.")
    ] = None,
    delivery_class: Annotated[
        str | None, typer.Option("--class", help="auth, transactional or relay.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Domain of the first recipient.")] = None,
    next_hop: Annotated[str | None, typer.Option(help="Name of the next hop.")] = None,
    rule: Annotated[str | None, typer.Option(help="Rule that the last failure matched.")] = None,
    recipient: Annotated[str | None, typer.Option(help="Address of a recipient, whole.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Deliveries to list.")] = USUAL_LIMIT,
    mailq: Annotated[bool, typer.Option("--mailq", help="Print it as Postfix's mailq does.")] = False,
    as_json: Json = False,
) -> None:
    """List what waits, is being sent or is held, the one due longest first; times are UTC.

    --mailq keeps the form that scripts for Postfix know: `*` behind an id is being sent, `!` is held, and where mailq has
    the sender stands the source. For example `mailkeep queue --class auth`, `mailkeep queue show ID`, `mailkeep queue flush --all`.
    """
    if context.invoked_subcommand is not None:
        return
    from mailkeep.cli._store import ask
    from mailkeep.cli.output import print_json, printable, table

    async def both(queue: "OperatorQueue") -> "tuple[tuple[DeliveryView, ...], tuple[ReplicaView, ...]]":
        found = await queue.queue(
            limit + 1,
            status=tuple(status or ()),
            delivery_class=delivery_class,
            domain=domain,
            next_hop=next_hop,
            rule=rule,
            recipient=recipient,
        )
        return found, await queue.replicas()

    found, replicas = ask(both)
    shown = found[:limit]
    if as_json:
        print_json(shown)
    elif mailq:
        print("\n".join(map(printable, _as_mailq(shown))))
    elif not shown:
        print("The queue is empty." if not _filtered(context) else "Nothing in the queue matches.")
    else:
        print(table(TITLES, map(_row, shown)))
        more = f"; there are more (--limit {MAX_LIMIT})" if len(found) > limit else ""
        print(f"-- {len(shown)} deliveries, {sum(view.size_bytes for view in shown)} bytes{more}")
        for line in _outages(replicas):
            print(printable(line))


@app.command()
def show(
    delivery_id: Annotated[UUID, typer.Argument(metavar="ID", help="The delivery's id.")],
    *,
    as_json: Json = False,
) -> None:
    """Show one delivery with its attempts and their SMTP dialogs, and who changed it by hand, when and why."""
    from mailkeep.cli._store import ask
    from mailkeep.cli.output import fail, print_json, printable

    async def all_of_it(
        queue: "OperatorQueue",
    ) -> "tuple[DeliveryView | None, tuple[AttemptView, ...], tuple[StoredChange, ...]]":
        return (
            await queue.delivery(delivery_id),
            await queue.attempts(delivery_id) or (),
            await queue.changes(delivery_id),
        )

    delivery, attempts, changes = ask(all_of_it)
    if delivery is None:
        fail(f"no delivery has the id {delivery_id}")
    if as_json:
        print_json({"delivery": delivery, "attempts": attempts, "changes": changes})
        return
    for name, value in _facts(delivery):
        if value is not None:
            print(f"{name:<13} {printable(str(value))}")
    for change in reversed(changes):
        words = f"{_instant(change.changed_at)} {change.verb} by {change.actor}: {change.reason}"
        print(f"{'change':<13} {printable(words)}")
    for attempt in attempts:
        print("\n".join(map(printable, describe_attempt(attempt))))


@app.command()
def flush(
    *,
    delivery_id: Annotated[UUID | None, typer.Option("--id", help="One delivery.")] = None,
    domain: Annotated[str | None, typer.Option(help="Those whose first recipient is there.")] = None,
    next_hop: Annotated[str | None, typer.Option(help="Those of a next hop.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that failed before and wait.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Probe next hops that are out at once.")] = False,
    reason: Annotated[str, typer.Option(help="Why; recorded with your name.")] = "flushed",
    actor: Actor = None,
    as_json: Json = False,
) -> None:
    """Make waiting deliveries due now, on every replica.

    Scheduled mail that was never tried keeps its time unless it is named by its id. For example
    `mailkeep queue flush --domain example.org --reason 'their server is back'`.
    """
    from mailkeep.cli._store import ask
    from mailkeep.cli.output import fail, print_json

    if sum(map(bool, (delivery_id, domain, next_hop, everything))) != 1:
        raise typer.BadParameter("give exactly one of --id, --domain, --next-hop and --all")
    why = _why(reason, actor)
    flushed = ask(
        lambda queue: queue.flush(
            delivery_id=delivery_id, domain=domain, next_hop=next_hop, force=force, why=why
        )
    )
    if delivery_id is not None and not flushed:
        fail(f"{delivery_id} is not waiting; see `mailkeep queue show {delivery_id}`")
    if as_json:
        print_json({"flushed": flushed})
    else:
        print("1 delivery is due now" if flushed == 1 else f"{flushed} deliveries are due now")


@app.command()
def shape(
    *,
    by: Annotated[str, typer.Option(help="domain, next_hop or class.")] = "domain",
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Rows to show.")] = USUAL_ROWS,
    as_json: Json = False,
) -> None:
    """Show how old the queue is: live deliveries by age in minutes and by domain, next hop or class.

    Old mail of one domain alone points at its mail server; of all domains at the next hop.
    """
    from mailkeep.cli._store import ask
    from mailkeep.cli.output import print_json, table
    from mailkeep.store.reads import ShapeBy

    if by not in set(ShapeBy):
        raise typer.BadParameter(f"{by!r} is none of: {', '.join(ShapeBy)}")
    found = ask(lambda queue: queue.shape(ShapeBy(by), limit))
    if as_json:
        print_json(found)
        return
    bounds = [f"{bound:g}" for bound in found.bounds_min]
    titles = (by.upper().replace("_", " "), "TOTAL", *bounds, f"{bounds[-1]}+")
    print(table(titles, ((row.name, row.total, *row.counts) for row in found.rows)))
    more = f", {found.groups - len(found.rows)} rows not shown" if found.groups > len(found.rows) else ""
    print(f"-- {found.total} deliveries; columns are minutes since acceptance, up to{more}")


Ids = Annotated[list[UUID], typer.Argument(metavar="ID…", help="Deliveries.")]
Reason = Annotated[str, typer.Option(help="Why; recorded with your name.")]


@app.command()
def hold(delivery_ids: Ids, *, reason: Reason, actor: Actor = None, as_json: Json = False) -> None:
    """Keep waiting deliveries from being sent until they are released.

    For example `mailkeep queue hold ID --reason 'wrong price in it'`.
    """
    _change("hold", delivery_ids, reason, actor, as_json=as_json)


@app.command()
def release(delivery_ids: Ids, *, reason: Reason, actor: Actor = None, as_json: Json = False) -> None:
    """Let held deliveries go on, due now.

    One that may have been delivered is not released under at_most_once: confirm, cancel or resend it.
    """
    _change("release", delivery_ids, reason, actor, as_json=as_json)


@app.command()
def cancel(delivery_ids: Ids, *, reason: Reason, actor: Actor = None, as_json: Json = False) -> None:
    """End deliveries that wait or are held; they are never sent."""
    _change("cancel", delivery_ids, reason, actor, as_json=as_json)


@app.command()
def confirm(delivery_ids: Ids, *, reason: Reason, actor: Actor = None, as_json: Json = False) -> None:
    """Record that held deliveries were delivered, as the next hop's own log shows."""
    _change("confirm", delivery_ids, reason, actor, as_json=as_json)


@app.command()
def delete(delivery_ids: Ids, *, reason: Reason, actor: Actor = None, as_json: Json = False) -> None:
    """Erase the content of deliveries now; those that wait or are held are cancelled.

    Their states and attempts stay until retention, so that the accounts hold.
    """
    _change("delete", delivery_ids, reason, actor, as_json=as_json)


@app.command()
def resend(
    delivery_ids: Ids,
    *,
    reason: Reason,
    actor: Actor = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same one makes no second delivery.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send the content of deliveries that ended or are held once more, as new deliveries.

    To those who did not get it, or to all if all did. Message-ID and bytes stay, so that receivers can tell.
    """
    if key is not None and len(delivery_ids) > 1:
        raise typer.BadParameter("--key takes one ID")
    _change("resend", delivery_ids, reason, actor, key=key, as_json=as_json)


def _change(
    verb: str,
    delivery_ids: list[UUID],
    reason: str,
    actor: str | None,
    *,
    key: str | None = None,
    as_json: bool,
) -> None:
    from mailkeep.cli._store import ask_store
    from mailkeep.cli.output import fail, print_json
    from mailkeep.operator.changes import (
        Changed,
        KeyTakenError,
        NoSuchDeliveryError,
        OperatorVerbs,
        WrongStatusError,
    )
    from mailkeep.store.changes import Verb

    why = _why(reason, actor)

    async def run(store: "Store") -> tuple[list[Changed], list[str]]:
        verbs = OperatorVerbs(store)
        done: list[Changed] = []
        refused: list[str] = []
        for delivery_id in delivery_ids:
            try:
                if verb == "resend":
                    done.append((await verbs.resend(delivery_id, why, key=key))[0])
                else:
                    done.append(await verbs.change(Verb(verb), delivery_id, why))
            except WrongStatusError as fault:
                refused.append(f"{delivery_id} {fault}")
            except (NoSuchDeliveryError, KeyTakenError) as fault:
                refused.append(str(fault))
        return done, refused

    done, refused = ask_store(run)
    if as_json:
        print_json({"changed": done, "refused": refused})
    else:
        for changed in done:
            print(f"{changed.delivery_id} {changed.status}")
    if refused:
        fail("\n".join(refused))


def _why(reason: str, actor: str | None) -> "Why":
    import getpass

    import msgspec

    from mailkeep.operator.changes import Why

    try:
        return msgspec.convert({"actor": actor or getpass.getuser(), "reason": reason}, Why)
    except msgspec.ValidationError as fault:
        raise typer.BadParameter(str(fault)) from None


def describe_attempt(attempt: "AttemptView") -> "Iterator[str]":
    """Yield the lines that tell what an attempt did: one for its outcome, one for each step of the dialog."""
    reply = " ".join(str(part) for part in (attempt.code, attempt.enhanced, attempt.reply) if part)
    words = [
        f"attempt {attempt.number}",
        _instant(attempt.started_at),
        f"to {attempt.next_hop}",
        attempt.status,
    ]
    if attempt.phase:
        words.append(f"at {attempt.phase}")
    if attempt.certainty and attempt.certainty != "delivered":
        words.append(f"({attempt.certainty})")
    yield " ".join(words) + (f": {reply}" if reply else "")
    for step in attempt.steps:
        said = f"{step.sent} -> " if step.sent else ""  # the server speaks first in a greeting
        yield f"  {step.at_ms:>8.0f} ms  {step.phase:<8}  {said}{step.reply or 'no reply'}"


def _as_mailq(views: "Sequence[DeliveryView]") -> "Iterator[str]":
    """Yield the lines of mailq: id, size, arrival and source, the reason in parentheses, each recipient that is still open."""
    if not views:
        yield "Mail queue is empty"
        return
    yield "-Queue ID-                             --Size-- ----Arrival Time---- -Source/Recipient-------"
    for view in views:
        mark = {"sending": "*", "held": "!"}.get(view.status, " ")
        yield f"{view.delivery_id}{mark} {view.size_bytes:>9} {view.accepted_at:%a %b %e %H:%M:%S}  {view.source}"
        if view.reason:
            yield f"({view.reason})"
        for recipient in view.recipients:
            if recipient.state == "open":
                yield f"{'':<69}{recipient.address or 'erased'}"
        yield ""
    kilobytes = sum(view.size_bytes for view in views) // 1024
    yield f"-- {kilobytes} Kbytes in {len(views)} Request{'' if len(views) == 1 else 's'}."


def _outages(replicas: "Iterable[ReplicaView]") -> "Iterator[str]":
    """Yield a line for each next hop that is out for a live replica."""
    from mailkeep.operator.queue import route_facts

    known = list(replicas)
    for hop in sorted({hop for replica in known for hop in replica.hops_out}):
        route = route_facts(hop, known)
        if route.since is not None:
            yield (
                f"-- next hop {hop} is out for {route.out_for} of {route.live_replicas} replicas since "
                f"{_instant(route.since)}, its mail is parked: {route.cause}"
            )


def _filtered(context: typer.Context) -> bool:
    return any(value for name, value in context.params.items() if name not in ("limit", "mailq", "as_json"))


def _row(view: "DeliveryView") -> tuple[object, ...]:
    return (
        view.delivery_id,
        view.size_bytes,
        _instant(view.accepted_at),
        view.delivery_class,
        view.status,
        _instant(view.due_at) if view.due_at else "-",
        _recipients(view),
        view.reason or "",
    )


def _recipients(view: "DeliveryView") -> str:
    first, *others = view.recipients
    return f"{first.address or 'erased'}{f' +{len(others)}' if others else ''}"


def _facts(view: "DeliveryView") -> "Iterator[tuple[str, object]]":
    yield "id", view.delivery_id
    yield "status", view.status
    yield "class", f"{view.delivery_class}, {view.guarantee}"
    yield "source", view.source
    yield "next hop", view.next_hop
    yield "template", view.template_id and f"{view.template_id} {view.locale} {view.catalog_version}"
    yield "size", f"{view.size_bytes} bytes"
    for name, instant in (
        ("accepted", view.accepted_at),
        ("next attempt", view.due_at),
        ("expires", view.expires_at),
        ("ended", view.finished_at),
    ):
        yield name, instant and _instant(instant)
    for recipient in view.recipients:
        because = f" ({recipient.reason})" if recipient.reason else ""
        yield "recipient", f"{recipient.address or 'erased'}: {recipient.state}{because}"
    yield "reason", view.reason and f"{view.reason} [{view.rule}]"
    yield "claimed by", view.claimed_by
    yield "parent", view.parent_id
    if view.dead_letter:
        buried_at = _instant(view.dead_letter.buried_at)
        yield "dead letter", f"{view.dead_letter.cause}, {buried_at}: {view.dead_letter.reason}"
    yield "attempts", view.attempts


def _instant(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S}"
