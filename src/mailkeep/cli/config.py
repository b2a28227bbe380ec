"""`mailkeep config`: what is configured, and what can be."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mailkeep.settings import SettingRow

REFERENCE_HEAD = """\
# Settings

Environment variables. Empty means unset. A setting marked *secret* may also come from the file that `<NAME>_FILE` names.

| name | written as | default | meaning |
| --- | --- | --- | --- |"""


def config(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Print every setting there is, as Markdown.")
    ] = False,
) -> None:
    """Show every setting with its value and where it came from; secrets as ***.

    Leaves with exit code 78 and all problems at once if the configuration can't be used.
    """
    from mailkeep.cli.output import load_settings, print_json, table
    from mailkeep.settings import Settings

    if reference:
        rows = Settings().describe()
        if not as_json:
            print("\n".join([REFERENCE_HEAD, *map(_reference_line, rows)]))
            return
    else:
        rows = load_settings().describe()
    if as_json:
        print_json(rows)
    else:
        print(table(("NAME", "FROM", "VALUE"), ((row.name, row.source, row.value) for row in rows)))


def _reference_line(row: "SettingRow") -> str:
    notation = row.notation.replace("|", "or") + (", *secret*" if row.secret else "")
    return f"| `{row.name}` | {notation} | {row.default} | {row.meaning} |"
