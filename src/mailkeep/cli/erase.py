"""`mailkeep erase`: all that is stored of one recipient, on that person's request."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mailkeep.operator.erase import ErasureReport

KEEP, ERASE = "keep", "erase"


def erase(
    *,
    recipient: Annotated[str, typer.Option(help="The address, as mail was sent to it.")],
    why: Annotated[str, typer.Option(help="The reason, recorded; without the address.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel what still waits first.")] = False,
    suppression: Annotated[
        str, typer.Option(help="keep: as a hash, so that no mail goes there; erase: wholly.")
    ] = KEEP,
    actor: Annotated[str | None, typer.Option("--as", help="Who does it.", show_default="your login")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Erase what is stored of a recipient: content, addresses, replies, dead letters, notes, malformed commands.

    That mail was sent, when, and how it ended stays, without to whom. A delivery to several people is erased for all of
    them. Exit code 1 if something is left: mail that waits (see --cancel) or is being sent. For example

      mailkeep erase --recipient ann@example.org --why 'request 4711' --dry-run
    """
    import getpass

    from mailkeep.cli._store import ask_store
    from mailkeep.cli.output import fail, print_json
    from mailkeep.operator.changes import Why
    from mailkeep.operator.erase import LiveMailError, OperatorErasure

    if suppression not in {KEEP, ERASE}:
        raise typer.BadParameter(f"--suppression is one of: {KEEP}, {ERASE}")
    try:
        report = ask_store(
            lambda store: OperatorErasure(store).erase(
                recipient,
                Why(why, actor or getpass.getuser()),
                dry_run=dry_run,
                cancel=cancel,
                keep_suppression=suppression == KEEP,
            )
        )
    except LiveMailError as fault:
        fail(f"{fault}; --cancel ends them first")
    if as_json:
        print_json(report)
    else:
        _say(report)
    if not dry_run and not report.is_whole:
        fail("something is left; run it again when it has ended")


def _say(report: "ErasureReport") -> None:
    import msgspec

    print("would be erased:" if report.dry_run else "erased:")
    for name, count in msgspec.structs.asdict(report.erased).items():
        print(f"  {name.replace('_', ' ')}: {count}")
    left = report.left
    print(f"not at rest: {left.waiting} waiting, {left.sending} being sent, {left.inbox} in the inbox of SQL")
    print("not in reach:")
    for place in report.elsewhere:
        print(f"  {place}")
