"""What several verbs are given alike: who does it, and until when something holds."""

from typing import Annotated, Final

import typer

MAX_EXPIRES_IN_S: Final = 36_500 * 86_400.0
"""A hundred years; what is meant for longer has no end."""

Actor = Annotated[str | None, typer.Option("--as", help="Who does it.", show_default="your login name")]


def actor_of(given: str | None) -> str:
    """Return who does it."""
    import getpass

    from mailkeep.operator.changes import MAX_ACTOR_CHARS

    actor = getpass.getuser() if given is None else given
    if not 1 <= len(actor) <= MAX_ACTOR_CHARS or not actor.isprintable():
        raise typer.BadParameter(f"--as takes 1 to {MAX_ACTOR_CHARS} printable characters")
    return actor


def expiry_s(given: str | None) -> float | None:
    """Return the seconds of `--expires-in`, None for ever."""
    from mailkeep.core.duration import parse_duration

    if given is None:
        return None
    try:
        duration_s = parse_duration(given)
    except ValueError as fault:
        raise typer.BadParameter(f"--expires-in: {fault}") from None
    if not 1 <= duration_s <= MAX_EXPIRES_IN_S:
        raise typer.BadParameter("--expires-in is from 1s to 36500d; leave it out for ever")
    return duration_s
