"""The filters that write dates, times, numbers and money as a locale's readers do (CLDR, by babel).

    {{ ordered_at|date }}  {{ ordered_at|datetime("long", tz="Europe/Paris") }}  {{ ordered_at|time }}
    {{ 1234.5|number }}  {{ 0.19|percent }}  {{ total|money("EUR") }}  {{ total|money(currency) }}

Instants are ISO 8601 strings and shown in their own offset unless `tz` names a zone. Numbers may be strings
of decimals. Messages never hold the value. What was written last is remembered: text and html of a mail write the same
values, and CLDR's patterns take longer than the rest of a template.
"""

from collections.abc import Callable, Hashable
from contextlib import suppress
from datetime import date, datetime, tzinfo
from decimal import Decimal, InvalidOperation
from functools import lru_cache, wraps
from typing import Final, Literal, cast, get_args

from babel import Locale
from babel.dates import format_date, format_datetime, format_time, get_timezone
from babel.numbers import format_currency, format_decimal, format_percent

from mailkeep.core.command import FailureCode

_Style = Literal["short", "medium", "long", "full"]
STYLES: Final = get_args(_Style)
REMEMBERED: Final = 1024
"""Results of each filter of a locale."""
MAX_REMEMBERED_CHARS: Final = 64
"""Of a value: longer ones are no numbers or dates that anybody prints."""
_CURRENCIES: Final = frozenset(Locale("en").currencies)


class PrintError(ValueError):
    """A value that a template can't print as it asks; the message names no value."""

    def __init__(self, message: str, code: FailureCode = FailureCode.INVALID_FIELD) -> None:
        super().__init__(message)
        self.code = code


def filters_of(locale: Locale) -> dict[str, Callable[..., str]]:
    """Return the filters of `locale` by name. Each raises `PrintError` for what it can't write."""

    @_remembering
    def write_date(value: object, style: str = "medium", *, tz: str | None = None) -> str:
        return format_date(_day(value, tz), _style(style), locale=locale)

    @_remembering
    def write_time(value: object, style: str = "short", *, tz: str | None = None) -> str:
        return format_time(_instant(value, tz), _style(style), locale=locale)

    @_remembering
    def write_datetime(value: object, style: str = "medium", *, tz: str | None = None) -> str:
        return format_datetime(_instant(value, tz), _style(style), locale=locale)

    @_remembering
    def write_number(value: object) -> str:
        return format_decimal(_decimal(value), locale=locale)

    @_remembering
    def write_percent(value: object) -> str:
        return format_percent(_decimal(value), locale=locale)

    @_remembering
    def write_money(value: object, currency: object) -> str:
        if not isinstance(currency, str) or currency not in _CURRENCIES:
            raise PrintError("money needs an ISO 4217 currency code such as EUR")
        return format_currency(_decimal(value), currency, locale=locale)

    return {
        "date": write_date,
        "time": write_time,
        "datetime": write_datetime,
        "number": write_number,
        "percent": write_percent,
        "money": write_money,
    }


def _remembering(write: Callable[..., str]) -> Callable[..., str]:
    """Return `write` with a memory for short texts. A number is known by its digits: -0.0 is equal to 0.0 and reads otherwise."""

    @lru_cache(maxsize=REMEMBERED, typed=True)
    def remembered(value: str | float, _digits: str, *rest: Hashable, **options: Hashable) -> str:
        return write(value, *rest, **options)

    @wraps(write)
    def remember(value: object, *rest: Hashable, **options: Hashable) -> str:
        if isinstance(value, str | int | float) and len(digits := str(value)) <= MAX_REMEMBERED_CHARS:
            # What can't be remembered, or is wrong: `write` says so.
            with suppress(TypeError):
                return remembered(value, digits, *rest, **options)
        return write(value, *rest, **options)

    return remember


def _decimal(value: object) -> Decimal:
    try:
        number = Decimal(str(value)) if isinstance(value, int | float | str) else Decimal("NaN")
    except InvalidOperation:
        number = Decimal("NaN")
    if isinstance(value, bool) or not number.is_finite() or abs(number.adjusted()) > 30:
        raise PrintError("number, percent and money need a number of at most 30 digits")
    return number


def _instant(value: object, tz: str | None) -> datetime:
    try:
        instant = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise PrintError(
            "time and datetime need an instant with its offset such as 2026-01-31T09:30:00+01:00"
        )
    try:
        return instant.astimezone(_zone(tz)) if tz else instant
    except OverflowError:  # year 1 or 9999, moved out of the calendar
        raise PrintError("the instant does not exist in that time zone") from None


def _day(value: object, tz: str | None) -> date:
    try:
        return date.fromisoformat(value) if isinstance(value, str) else _instant(value, tz).date()
    except ValueError:
        return _instant(value, tz).date()


def _zone(name: str) -> tzinfo:
    try:
        return get_timezone(name)
    except LookupError:
        raise PrintError("tz needs the name of a time zone such as Europe/Paris") from None


def _style(style: str) -> _Style:
    if style not in STYLES:
        raise PrintError(f"a style of date and time is one of: {', '.join(STYLES)}")
    return cast("_Style", style)
