"""`mailkeep payloads`: the keys that seal what is stored of mail: make one, see what each still seals, lay old ones down."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mailkeep.store.rekey import KeyUse, Rekeyed

app = typer.Typer(help="Keys that seal stored mail: make them, rotate them.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("new-key")
def new_key(name: Annotated[str, typer.Argument(help="Its name, such as 2026-11.")]) -> None:
    """Print a new key as a line for the file that MAIL_PAYLOAD_KEYS_FILE names.

    Give that line to every replica behind the others first, then put it first: from the next start on it seals. For example
    `(umask 077; mailkeep payloads new-key 2026-11 > /etc/mailkeep/payload-keys)`.
    """
    from mailkeep.cli.output import fail
    from mailkeep.store.sealing import PayloadKeysError
    from mailkeep.store.sealing import new_key as make

    try:
        print(make(name))
    except PayloadKeysError as fault:
        fail(str(fault))


@app.command()
def keys(*, as_json: Json = False) -> None:
    """Show what each key still seals, and which may leave the file. Reads the beginning of all that is stored."""
    from mailkeep.cli._store import ask_store
    from mailkeep.cli.output import print_json, table
    from mailkeep.store.rekey import Rekey

    uses = ask_store(lambda store: Rekey(store).uses())
    if as_json:
        print_json(uses)
    else:
        print(
            table(
                ("KEY", "STORED", "STATE"),
                [(use.name or "not sealed", use.stored, _state(use)) for use in uses],
            )
        )


@app.command()
def rekey(*, as_json: Json = False) -> None:
    """Seal by the newest key all that is not, so that older keys may leave the file.

    Every replica must have the newest key by then. May run beside them, and be interrupted and begun anew. Exit code 1 if
    something could not be opened.
    """
    from mailkeep.cli._store import ask_store
    from mailkeep.cli.output import EXIT_CONFIG, fail, load_settings, print_json
    from mailkeep.store.rekey import Rekey
    from mailkeep.store.sealing import PayloadKeysError

    if load_settings(find_dev=True).payload_keys_file is None:
        fail("MAIL_PAYLOAD_KEYS_FILE is not set; it names the keys to seal by", EXIT_CONFIG)
    try:
        done: Rekeyed = ask_store(lambda store: Rekey(store).run())
    except PayloadKeysError as fault:
        fail(f"MAIL_PAYLOAD_KEYS_FILE {fault}", EXIT_CONFIG)
    if as_json:
        print_json(done)
    else:
        print(f"{done.sealed} sealed anew")
        for name in done.forgotten:
            print(f"the key {name} seals nothing any more and may leave the file")
    if done.unopened:
        fail(
            f"{done.unopened} could not be opened and stay as they are; `mailkeep payloads keys` names their keys"
        )


def _state(use: "KeyUse") -> str:
    if use.seals:
        return "seals new mail"
    if not use.is_here:
        return "MISSING in the file" if use.stored else "gone"
    return "needed" if use.stored else "not needed any more"
