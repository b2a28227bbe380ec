"""The named statements of `sql/*.sql`, read once. No SQL stands anywhere else but in `migrations/`.

Each is valid as it stands; a narrower form of it costs PostgreSQL less. A statement opens, locks and plans for every partition
that it might touch, which is each day of retention, unless its text says which days can't be meant.
"""

from functools import cache, lru_cache
from importlib.resources import files
from typing import Final
from uuid import UUID

from mailkeep.core.ids import FIRST_ID, LAST_ID

WINDOWS: Final = 64
"""Statements that are kept bound to days: a handful of statements, times the windows of one hour's batches."""


@cache
def query(name: str) -> str:
    """Return the statement in `sql/<name>.sql`. Raises FileNotFoundError if there is none."""
    return (files(__package__) / "sql" / f"{name}.sql").read_text(encoding="utf-8")


@lru_cache(maxsize=WINDOWS)
def query_between(name: str, first: UUID, last: UUID) -> str:
    """Return the statement `name` for ids from `first` to `last` alone: the planner leaves the partitions of other days out."""
    return query(name).replace(str(FIRST_ID), str(first)).replace(str(LAST_ID), str(last))


def names() -> tuple[str, ...]:
    """Return the name of every statement, sorted."""
    folder = files(__package__) / "sql"
    return tuple(
        sorted(entry.name.removesuffix(".sql") for entry in folder.iterdir() if entry.name.endswith(".sql"))
    )
