"""`mailkeep templates`: check a template catalog, list it, and see what a template makes of given values.

Exit codes: 0 done, 1 the catalog or the values have a fault, 2 wrong usage.
"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mailkeep.cli.output import EXIT_FAILED, fail, print_json, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mailkeep.templates.catalog import Catalog
    from mailkeep.templates.compile import Template
    from mailkeep.templates.declaration import Variable
    from mailkeep.templates.folder import CatalogProblem
    from mailkeep.templates.render import Rendered

EXIT_USAGE: Final = 2  # as typer ends on a wrong option

app = typer.Typer(help="Check, list and try the templates of mail.", no_args_is_help=True)

DirectoryArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="DIR", envvar="MAIL_TEMPLATE_DIR", help="The catalog.", show_default="the shipped catalog"
    ),
]
DirectoryOption = Annotated[
    Path | None,
    typer.Option(
        "--dir", envvar="MAIL_TEMPLATE_DIR", help="The catalog.", show_default="the shipped catalog"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Part(StrEnum):
    """What of a template to show."""

    SUBJECT = "subject"
    TEXT = "text"
    HTML = "html"
    ALL = "all"


@app.command()
def check(directory: DirectoryArgument = None, *, as_json: Json = False) -> None:
    """Parse a whole catalog, render it with its examples, and list every problem (exit code 1)."""
    from mailkeep.templates.catalog import CatalogError

    try:
        catalog = _load(directory)
    except CatalogError as fault:
        if as_json:
            print_json({"ok": False, "problems": fault.problems, "warnings": ()})
            raise typer.Exit(EXIT_FAILED) from None
        _print_problems(fault.problems, "red")
        fail(f"{len(fault.problems)} problem(s); the service can't start with this catalog")
    if as_json:
        print_json({"ok": True, "version": catalog.version, "problems": (), "warnings": catalog.warnings})
        return
    _print_problems(catalog.warnings, "yellow")
    counts = f"{len(catalog.templates)} template(s) in {len(catalog.environments)} locale(s)"
    print(f"ok: {counts}, version {catalog.version}")


@app.command("list")
def list_templates(*, directory: DirectoryOption = None, as_json: Json = False) -> None:
    """List the templates with their locales and variables."""
    templates = sorted(_load_or_fail(directory).templates.values(), key=lambda template: template.template_id)
    if as_json:
        print_json([_described(template) for template in templates])
        return
    rows = [
        (template.template_id, " ".join(template.locales), " ".join(template.declaration.variables))
        for template in templates
    ]
    print(table(("TEMPLATE", "LOCALES", "VARIABLES"), rows))


@app.command()
def render(
    template_id: Annotated[str, typer.Argument(metavar="ID", help="The template.")],
    *,
    locale: Annotated[str, typer.Option(help="The reader's locale, such as de-AT.")] = "en",
    var: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A variable; lists, numbers and so on as JSON. Repeatable."),
    ] = None,
    vars_file: Annotated[
        Path | None, typer.Option(help="Variables from a JSON file that holds an object.")
    ] = None,
    part: Annotated[Part, typer.Option(help="What to show.")] = Part.ALL,
    out: Annotated[Path | None, typer.Option(help="Write what is shown to this file.")] = None,
    directory: DirectoryOption = None,
    as_json: Json = False,
) -> None:
    """Show what a template makes of values; where none is given, of its example.

    For example `mailkeep templates render login-code --locale de --var code=123456 --part text`.
    """
    from mailkeep.core.command import CommandError, Limits

    catalog = _load_or_fail(directory)
    template = catalog.templates.get(template_id)
    if template is None:
        fail(f"there is no template {template_id!r}; there are: {', '.join(sorted(catalog.templates))}")
    declared = template.declaration.variables
    variables = {name: variable.example for name, variable in declared.items()}
    variables |= _read_variables(vars_file)
    variables |= dict(_parse_variable(assignment, declared) for assignment in var or ())
    try:
        rendered = catalog.render(template_id, locale, variables, Limits())
    except CommandError as fault:
        known = f"; its variables are: {', '.join(declared)}" if fault.code == "unknown_field" else ""
        fail(f"{fault.field}: {fault.message} ({fault.code}){known}")
    if as_json:
        print_json(rendered)
    else:
        _write(_shown(rendered, part), out)


def _load(directory: Path | None) -> "Catalog":
    from mailkeep.templates.catalog import SHIPPED_CATALOG, Catalog

    return Catalog.load(directory or SHIPPED_CATALOG)


def _load_or_fail(directory: Path | None) -> "Catalog":
    from mailkeep.templates.catalog import CatalogError

    try:
        return _load(directory)
    except CatalogError as fault:
        fail(f"{fault}\nMend these, then see `mailkeep templates check`.")


def _read_variables(file: Path | None) -> dict[str, Any]:
    import msgspec

    if file is None:
        return {}
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except OSError as fault:
        fail(f"can't read {file}: {fault.strerror}")
    except (msgspec.DecodeError, UnicodeDecodeError):
        fail(f'{file} does not hold a JSON object; write one such as {{"code": "123456"}}')


def _parse_variable(assignment: str, declared: "Mapping[str, Variable]") -> tuple[str, Any]:
    import msgspec

    name, equals, value = assignment.partition("=")
    if not equals:
        fail("--var needs NAME=VALUE, for example --var code=123456", EXIT_USAGE)
    if name not in declared or isinstance(declared[name].example, str):
        return name, value
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        example = msgspec.json.encode(declared[name].example).decode()
        fail(f"--var {name} must be JSON, since its type is {declared[name].type}, such as {example}")


def _shown(rendered: "Rendered", part: Part) -> str:
    if part is Part.SUBJECT:
        return f"{rendered.subject}\n"
    if part is Part.TEXT:
        return rendered.text
    if part is Part.HTML:
        if rendered.html is None:
            fail(f"{rendered.template_id} has no html in {rendered.locale}; try --part text")
        return rendered.html
    locales = " > ".join(rendered.locale_chain)
    return f"Locale: {locales}\nSubject: {rendered.subject}\n\n{rendered.text}\n{rendered.html or ''}"


def _write(shown: str, out: Path | None) -> None:
    if out is None:
        typer.echo(shown, nl=False)
        return
    try:
        out.write_text(shown, encoding="utf-8")
    except OSError as fault:
        fail(f"can't write {out}: {fault.strerror}")


def _described(template: "Template") -> dict[str, Any]:
    return {
        "id": template.template_id,
        "description": template.declaration.description,
        "locales": template.locales,
        "html_locales": sorted(template.html_locales),
        "variables": template.declaration.variables,
    }


def _print_problems(problems: "tuple[CatalogProblem, ...]", colour: str) -> None:
    for problem in problems:  # click drops the colour where the output is no terminal
        typer.echo(f"{typer.style(problem.path, fg=colour)}: {problem.message}")
