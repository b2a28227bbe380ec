"""Turns plain data into pages: the template engine of the console, and how it writes numbers, sizes and times.

Every value is escaped; templates get plain data only, never objects with methods that do things. The templates are files of
this package, parsed when first used. Times are UTC, as in the logs.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from importlib.resources import files
from typing import Any, Final
from uuid import UUID

import msgspec
from minijinja import Environment
from starlette.responses import Response

from mailkeep.console.guard import PAGE_HEADERS
from mailkeep.core.duration import format_duration

MEDIA_TYPE: Final = "text/html; charset=utf-8"
_UNITS: Final = ("kB", "MB", "GB")
_SPANS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_KEPT: Final = (datetime,)


class Pages:
    """Renders pages; `shared` is what every page gets."""

    def __init__(self, shared: Mapping[str, Any]) -> None:
        self._shared = dict(shared)
        self._environment = Environment(
            loader=_source,
            undefined_behavior="strict",
            auto_escape_callback=lambda _name: True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        for name, write in _FILTERS.items():
            self._environment.add_filter(name, write)

    def render(
        self,
        name: str,
        context: Mapping[str, Any],
        *,
        status: int = 200,
        headers: Mapping[str, str] = PAGE_HEADERS,
    ) -> Response:
        """Return the page `name` with `context`, which may hold value types."""
        text = self._environment.render_template(f"{name}.html", **self._shared, **plain(context))
        return Response(text, status, dict(headers), MEDIA_TYPE)


def plain(value: Any) -> Any:  # noqa: ANN401 - any value type, as plain data
    """Return `value` as dicts, lists, text, numbers and instants."""
    return msgspec.to_builtins(value, builtin_types=_KEPT, str_keys=True)


def _source(name: str) -> str | None:
    page = files(__package__) / "pages" / name
    return page.read_text(encoding="utf-8") if page.is_file() else None


def clock(at: datetime | None) -> str:
    """Return an instant to the second, in UTC."""
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def iso(at: datetime | None) -> str:
    """Return an instant as programs read it."""
    return "" if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds")


def ago(at: datetime | None) -> str:
    """Return how far off an instant is: `3 min ago`, `in 2 h`."""
    if at is None:
        return ""
    seconds = (datetime.now(UTC) - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    amount = span(abs(seconds))
    return f"{amount} ago" if seconds > 0 else f"in {amount}"


def span(seconds: float) -> str:
    """Return a length of time in one unit: `4 min`."""
    for length, unit in _SPANS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds * 1000:.0f} ms"


def size(count: float | None) -> str:
    """Return a number of bytes as people say it: `12 kB`."""
    if count is None:
        return ""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in _UNITS:
        count /= 1000
        if count < 1000 or unit == _UNITS[-1]:
            break
    return f"{count:.3g} {unit}"


def number(value: float) -> str:
    """Return a figure: whole ones with thousands apart, small ones with a decimal."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def short(id_: str | UUID) -> str:
    """Return the end of an id: its beginning is a time that neighbours share."""
    return f"…{str(id_)[-12:]}"


def decoded(header: str) -> str:
    """Return a header field's text as its author meant it (RFC 2047); what can't be read stays as it is."""
    try:
        return str(make_header(decode_header(header)))
    except (HeaderParseError, LookupError, ValueError):
        return header


_FILTERS: Final[Mapping[str, Callable[..., str]]] = {
    "decoded": decoded,
    "clock": clock,
    "iso": iso,
    "ago": ago,
    "span": span,
    "size": size,
    "number": number,
    "short": short,
    "wait": format_duration,
    "words": lambda word: str(word).replace("_", " "),
}
