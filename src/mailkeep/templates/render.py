"""Rendering: one part of one template, in one locale, within bounds of time and size.

Each locale has an environment of its own, so that its filters and its shared files are its own. Undefined
values are faults (strict), html is escaped, and nothing but text and numbers can be printed: a mail never
reads "None" or "[{'name': …". Called by `catalog`; the engine sees plain data only, since it would call the
methods of Python objects.

Work is bounded by fuel and output by an allowance that printed values draw on. What one expression builds in
memory (`"x" * n`) is not: templates are their operator's own and trusted, the values in them are not.
"""

import threading
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from babel import Locale
from minijinja import Environment, TemplateError

from mailkeep.core.command import (
    CommandError,
    FailureCode,
    Limits,
    check_body,
    check_subject,
)
from mailkeep.templates.formats import PrintError, filters_of

FUEL: Final = 50_000
"""Engine instructions for one part: some 1,200 to 3,000 rows of a table, which is what fits the default size
of variables. The slowest part, nothing but dates and money, ends after 0.6 s."""
VARIABLES_FIELD: Final = "payload.variables"
_SHOWS_CONTEXT: Final = "debug"
"""The engine's own function that prints every variable."""


class Rendered(msgspec.Struct, frozen=True):
    """Finished content, and how it came about. `locale_chain` ends in `locale`, the one used."""

    subject: str
    text: str
    html: str | None
    template_id: str
    locale: str
    locale_chain: tuple[str, ...]
    catalog_version: str
    sensitive: bool


class _Allowance(threading.local):
    """How many more characters the part being rendered in this thread may print."""

    chars = 0


_allowance = _Allowance()


def build_environment(locale: str) -> Environment:
    """Return an empty engine for `locale` (a tag that CLDR knows), with its filters, `locale` and `dir`."""
    parsed = Locale.parse(locale, sep="-")
    environment = Environment(
        debug=False,  # debug puts values into error messages
        fuel=FUEL,
        undefined_behavior="strict",
        auto_escape_callback=_escaping,
        finalizer=_printable,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.remove_global(_SHOWS_CONTEXT)
    for name, write in filters_of(parsed).items():
        environment.add_filter(name, write)
    environment.add_global("locale", locale)
    environment.add_global("dir", parsed.text_direction)
    return environment


def render_subject(
    environment: Environment, template_id: str, context: Mapping[str, Any], limits: Limits
) -> str:
    """Render the subject, one line of at most `limits.subject_chars`. Raises `CommandError`."""
    subject = _render(environment, f"{template_id}/subject", context, limits.subject_chars)
    try:
        check_subject(subject, limits, VARIABLES_FIELD)
    except CommandError as fault:
        raise _in_part(fault, "subject") from None
    return subject


def render_body(
    environment: Environment, template_id: str, part: str, context: Mapping[str, Any], limits: Limits
) -> str:
    """Render `text` or `html`, at most `limits.body_bytes` long. Raises `CommandError`."""
    body = _render(environment, f"{template_id}/{part}", context, limits.body_bytes)
    try:
        check_body(body, limits, VARIABLES_FIELD)
    except CommandError as fault:
        raise _in_part(fault, part) from None
    return body


def _escaping(name: str) -> bool:
    return name.endswith(("/html", ".html"))


def _printable(value: object) -> object:
    if isinstance(value, str):
        _allowance.chars -= len(value)
        if _allowance.chars < 0:
            raise PrintError("would print more than fits", FailureCode.TOO_LARGE)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise PrintError("prints a value that is neither text nor a number, such as none or a list")
    return value


def _render(environment: Environment, name: str, context: Mapping[str, Any], max_chars: int) -> str:
    _allowance.chars = max_chars
    try:
        return environment.render_template(name, **context)
    except TemplateError as fault:
        raise _translated(fault, name) from None
    except (PrintError, TypeError) as fault:  # TypeError: a filter called with the wrong arguments
        code = fault.code if isinstance(fault, PrintError) else FailureCode.INVALID_FIELD
        message = str(fault) if isinstance(fault, PrintError) else "calls a filter with the wrong arguments"
        raise CommandError(code, VARIABLES_FIELD, f"template {name}: {message}") from None


def _translated(fault: TemplateError, name: str) -> CommandError:
    place = f"template {fault.name or name} line {fault.line}"
    match fault.kind:
        case "OutOfFuel":
            return CommandError(
                FailureCode.TOO_LARGE,
                VARIABLES_FIELD,
                f"{place}: too much work; pass fewer or shorter lists",
            )
        case "UndefinedError":
            return CommandError(
                FailureCode.MISSING_VARIABLE,
                VARIABLES_FIELD,
                f"{place}: a member that is used there was not given",
            )
        case kind:
            return CommandError(
                FailureCode.INVALID_FIELD,
                VARIABLES_FIELD,
                f"{place}: a value can't be used as it is there ({kind})",
            )


def _in_part(fault: CommandError, part: str) -> CommandError:
    return CommandError(fault.code, fault.field, f"the rendered {part} {fault.message}")
