"""`mailkeep erase`: all that is stored of one recipient, on that person's request."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mailkeep.operator.erase import ErasureReport


def erase(
    *,
    recipient: Annotated[str, typer.Option(help="The address, of a recipient or a sender.")],
    why: Annotated[str, typer.Option(help="The reason, recorded; without the address.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="End what still waits first, and API keys in force.")
    ] = False,
    suppression: Annotated[
        str, typer.Option(help="keep: as a hash, so that no mail goes there; erase: wholly.")
    ] = "keep",
    actor: Annotated[str | None, typer.Option("--as", help="Who does it.", show_default="your login")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Erase what is stored of an address: content, addresses, replies, dead letters, notes, malformed commands.

    That mail was sent, when, and how it ended stays, without to whom. A delivery to several people is erased for all of
    them. Exit code 1 if something is left: mail that waits (see --cancel) or is being sent. For example

      mailkeep erase --recipient ann@example.org --why 'request 4711' --dry-run
    """
    import getpass

    from mailkeep.cli._store import ask_store
    from mailkeep.cli.output import fail, print_json
    from mailkeep.operator.erase import ErasureRequest, LiveMailError, OperatorErasure, SuppressionFate

    if suppression not in set(SuppressionFate):
        raise typer.BadParameter(f"--suppression is one of: {', '.join(SuppressionFate)}")
    wanted = ErasureRequest(
        recipient, why, actor or getpass.getuser(), dry_run, cancel, SuppressionFate(suppression)
    )
    try:
        report = ask_store(lambda store: OperatorErasure(store).erase(wanted))
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
    print(
        f"not at rest: {left.waiting} waiting, {left.sending} being sent, {left.bounces} bounces being made, "
        f"{left.inbox} in the inbox of SQL, {left.api_keys} API keys in force"
    )
    print("not in reach:")
    for place in report.elsewhere:
        print(f"  {place}")
