"""What a template declares in `template.toml`: its variables, their types, and an example of each.

    description = "A code for signing in"

    [variables.code]
    type = "string"        # string, integer, number, boolean, list, object, date, datetime or url
    required = true        # the default; a variable that is not required is none when it is not given
    sensitive = true       # erased from storage when the delivery is over; default false
    example = "123456"     # the start renders every template with its examples
    description = "…"      # for those who write commands

Values are plain JSON data. Messages name the variable and never its value.
"""

import tomllib
from collections.abc import Callable, Mapping
from datetime import date, datetime
from enum import StrEnum
from math import isfinite
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from mailkeep.core.command import CommandError, FailureCode

MAX_INTEGER: Final = 2**63 - 1
"""Beyond it the template engine turns integers into approximate numbers."""
MAX_NAME_CHARS: Final = 64


class VariableType(StrEnum):
    """The types of variables; `date` and `datetime` are ISO 8601 strings, a `url` is http or https."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    LIST = "list"
    OBJECT = "object"
    DATE = "date"
    DATETIME = "datetime"
    URL = "url"


class Variable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One declared variable."""

    type: VariableType
    example: Any
    required: bool = True
    sensitive: bool = False
    description: str = ""


class Declaration(msgspec.Struct, frozen=True):
    """A whole `template.toml`."""

    description: str
    variables: Mapping[str, Variable]

    @property
    def sensitive(self) -> bool:
        """Whether any variable is sensitive, so that the finished mail is too."""
        return any(variable.sensitive for variable in self.variables.values())

    def bind(self, given: Mapping[str, Any], max_depth: int) -> dict[str, Any]:
        """Return the variables of one rendering: those given, checked, and none for optional ones left out.

        Raises `CommandError` with `unknown_field`, `missing_variable`, `invalid_field` or, nested deeper than
        `max_depth`, `too_large`.
        """
        for name in given:
            if name not in self.variables:
                raise CommandError(
                    FailureCode.UNKNOWN_FIELD, _field(name), "is not a variable of this template"
                )
        bound: dict[str, Any] = {}
        for name, variable in self.variables.items():
            value = bound[name] = given.get(name)
            if value is not None:
                _check(name, variable.type, value, max_depth)
            elif variable.required:
                raise CommandError(FailureCode.MISSING_VARIABLE, _field(name), "is required by this template")
        return bound

    def samples(self) -> dict[str, dict[str, Any]]:
        """Return the examples as commands may vary them: all, the required, every boolean reversed."""
        full = {name: variable.example for name, variable in self.variables.items()}
        return {
            "the examples": full,
            "only the required examples": {
                name: full[name] for name in full if self.variables[name].required
            },
            "the examples with every boolean reversed": {
                name: not value if isinstance(value, bool) else value for name, value in full.items()
            },
        }


_UNREADABLE: Final = Variable(VariableType.STRING, example="")
"""Stands for a variable whose table is faulty, so that its uses are not reported as well."""


def parse_declaration(text: str) -> tuple[Declaration | None, list[str]]:
    """Parse a `template.toml` (None if it is no TOML), with a message for each thing that is wrong."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        return None, [f"is not TOML: {fault}"]
    description, tables = document.pop("description", ""), document.pop("variables", {})
    messages = [f"has an unknown key `{key}`; known are description and variables" for key in document]
    if not isinstance(description, str):
        description, messages = "", [*messages, "`description` must be a string"]
    if not isinstance(tables, dict):
        tables, messages = {}, [*messages, "`variables` must be a table, as in [variables.code]"]
    variables: dict[str, Variable] = {}
    for name, table in tables.items():
        try:
            variables[name] = _parse_variable(name, table)
        except ValueError as fault:
            variables[name] = _UNREADABLE
            messages.append(f"variable `{name}`: {fault}")
    return Declaration(description, variables), messages


def _parse_variable(name: str, table: object) -> Variable:
    if not name.isidentifier() or len(name) > MAX_NAME_CHARS:
        raise ValueError(f"a name is up to {MAX_NAME_CHARS} letters, digits and underscores")
    variable = msgspec.convert(table, Variable)
    if not _CHECKS[variable.type](variable.example):
        raise ValueError(f"the example is not {_ARTICLES[variable.type]}")
    return variable


def _check(name: str, kind: VariableType, value: object, max_depth: int) -> None:
    if not _CHECKS[kind](value):
        raise CommandError(FailureCode.INVALID_FIELD, _field(name), f"must be {_ARTICLES[kind]}")
    if kind in {VariableType.LIST, VariableType.OBJECT}:
        _check_plain(name, value, max_depth - 1)


def _check_plain(name: str, value: object, left: int) -> None:
    if left < 0:
        raise CommandError(FailureCode.TOO_LARGE, _field(name), "is nested too deeply")
    match value:
        case dict():
            for key, member in value.items():
                _check_plain(name, key, left - 1)
                _check_plain(name, member, left - 1)
        case list():
            for member in value:
                _check_plain(name, member, left - 1)
        case str() | bool() | None:
            pass
        case int() | float() if _is_number(value):
            pass
        case _:
            raise CommandError(FailureCode.INVALID_FIELD, _field(name), "must be plain JSON data")


def _field(name: str) -> str:
    return (
        f"payload.variables.{name}"
        if name.isidentifier() and len(name) <= MAX_NAME_CHARS
        else "payload.variables"
    )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INTEGER


def _is_number(value: object) -> bool:
    return _is_integer(value) or (isinstance(value, float) and isfinite(value))


def _is_date(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(date.fromisoformat(value))
    except ValueError:
        return False


def _is_datetime(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _is_url(value: object) -> bool:
    if not isinstance(value, str) or not value.isprintable() or " " in value:
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


_CHECKS: Final[dict[VariableType, Callable[[object], bool]]] = {
    VariableType.STRING: lambda value: isinstance(value, str),
    VariableType.INTEGER: _is_integer,
    VariableType.NUMBER: _is_number,
    VariableType.BOOLEAN: lambda value: isinstance(value, bool),
    VariableType.LIST: lambda value: isinstance(value, list),
    VariableType.OBJECT: lambda value: isinstance(value, dict),
    VariableType.DATE: _is_date,
    VariableType.DATETIME: _is_datetime,
    VariableType.URL: _is_url,
}
_ARTICLES: Final = {
    VariableType.STRING: "a string",
    VariableType.INTEGER: "an integer of 64 bits",
    VariableType.NUMBER: "a finite number",
    VariableType.BOOLEAN: "true or false",
    VariableType.LIST: "a list",
    VariableType.OBJECT: "an object",
    VariableType.DATE: "a date such as 2026-01-31",
    VariableType.DATETIME: "an instant with its offset such as 2026-01-31T09:30:00+01:00",
    VariableType.URL: "an http or https URL",
}
