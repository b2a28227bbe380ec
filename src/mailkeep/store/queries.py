"""The named statements of `sql/*.sql`, read once. No SQL stands anywhere else but in `migrations/`."""

from functools import cache
from importlib.resources import files


@cache
def query(name: str) -> str:
    """Return the statement in `sql/<name>.sql`. Raises FileNotFoundError if there is none."""
    return (files(__package__) / "sql" / f"{name}.sql").read_text(encoding="utf-8")


def names() -> tuple[str, ...]:
    """Return the name of every statement, sorted."""
    folder = files(__package__) / "sql"
    return tuple(
        sorted(entry.name.removesuffix(".sql") for entry in folder.iterdir() if entry.name.endswith(".sql"))
    )
