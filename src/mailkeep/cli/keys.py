"""`mailkeep keys`: the API keys with which people's programs send over `POST /send`."""

from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mailkeep.cli._given import Actor, actor_of, expiry_s

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from mailkeep.operator.keys import OperatorKeys
    from mailkeep.store.api_keys import ApiKey

T = TypeVar("T")

app = typer.Typer(help="Make, list and revoke the API keys of POST /send.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(
    *,
    name: Annotated[
        str, typer.Argument(help="The program that will hold it; keys of one name are one program.")
    ],
    sender: Annotated[
        list[str],
        typer.Option(help="An address it may send from, or a whole @domain. May be repeated."),
    ],
    expires_in: Annotated[
        str | None, typer.Option(help="Let it end after a duration, such as 90d.", show_default="never")
    ] = None,
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and print its token, this once: only a hash of it is stored.

    To change a key, make a second one under the same name, give it to the program, and revoke the first. For example

      mailkeep keys create billing --sender billing@example.org --expires-in 365d

      mailkeep keys create newsdesk --sender @news.example.org --sender ann@example.org
    """
    import sys

    from mailkeep.cli.output import print_json

    by, expires_in_s = actor_of(actor), expiry_s(expires_in)
    made = _ask(lambda keys: keys.create(name, sender, actor=by, expires_in_s=expires_in_s))
    if as_json:
        print_json(made)
        return
    print(made.token)
    print(
        f"key {made.key.key_id} for {made.key.name} sends from {', '.join(made.key.senders)};"
        " its token is shown this once",
        file=sys.stderr,
    )


@app.command("list")
def list_keys(
    *,
    with_ended: Annotated[
        bool, typer.Option("--all", help="Also those that are revoked or have expired.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List API keys, the newest first. When one was used last is known by the hour.

    For example `mailkeep keys list --all --json`.
    """
    from mailkeep.cli.output import print_json, table

    found = _ask(lambda keys: keys.page(with_ended=with_ended))
    if as_json:
        print_json({"keys": found})
    elif found:
        titles = ("ID", "NAME", "MADE", "BY", "EXPIRES", "LAST USED", "REVOKED", "SENDS FROM")
        print(table(titles, map(_row, found)))
    else:
        print("no keys")


@app.command()
def revoke(
    *,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `mailkeep keys list` shows it.")],
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """Revoke an API key for good. Every process refuses it within seconds; what it sent before goes on.

    For example `mailkeep keys revoke 8f2a71c05d9e34b6`.
    """
    from mailkeep.cli.output import fail, print_json

    by = actor_of(actor)
    key = _ask(lambda keys: keys.revoke(key_id, actor=by))
    if key is None:
        fail(f"there is no key {key_id}; mailkeep keys list --all shows them")
    if as_json:
        print_json(key)
    else:
        print(f"key {key.key_id} of {key.name} is revoked")


def _ask(question: "Callable[[OperatorKeys], Awaitable[T]]") -> T:
    from mailkeep.cli._store import ask_store
    from mailkeep.cli.output import fail
    from mailkeep.operator.keys import OperatorKeys

    try:
        return ask_store(lambda store: question(OperatorKeys(store)))
    except ValueError as fault:
        fail(str(fault))


def _row(key: "ApiKey") -> tuple[object, ...]:
    return (
        key.key_id,
        key.name,
        _instant(key.created_at),
        key.actor,
        _instant(key.expires_at),
        _instant(key.last_used_at),
        _instant(key.revoked_at),
        ", ".join(key.senders),
    )


def _instant(instant: "datetime | None") -> str:
    return f"{instant:%Y-%m-%d %H:%M}" if instant else "-"
