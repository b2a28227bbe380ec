"""The filters for dates, numbers and money."""

import pytest
from babel import Locale

from mailkeep.templates.formats import PrintError, filters_of

WHEN = "2026-03-14T23:09:26+01:00"


@pytest.mark.parametrize(
    ("locale", "name", "value", "arguments", "expected"),
    [
        ("en", "date", WHEN, {}, "Mar 14, 2026"),
        ("de", "date", "2026-03-14", {"style": "full"}, "Samstag, 14. März 2026"),
        ("fr", "date", WHEN, {"style": "long", "tz": "Asia/Tokyo"}, "15 mars 2026"),
        ("de", "time", WHEN, {}, "23:09"),
        ("de", "datetime", WHEN, {"tz": "UTC"}, "14.03.2026, 22:09:26"),
        ("de", "number", 1234567.5, {}, "1.234.567,5"),
        ("en", "number", "0.10", {}, "0.1"),
        ("en", "percent", 0.19, {}, "19%"),
        ("de", "money", 1234.5, {"currency": "EUR"}, "1.234,50\xa0€"),
        ("en", "money", "0.1", {"currency": "USD"}, "$0.10"),
        ("en", "money", 500, {"currency": "JPY"}, "¥500"),
    ],
)
def test_values_are_written_as_readers_do(
    locale: str, name: str, value: object, arguments: dict[str, str], expected: str
) -> None:
    """Each filter follows the locale's habits and its arguments."""
    assert filters_of(Locale(locale))[name](value, **arguments) == expected


@pytest.mark.parametrize(
    ("name", "value", "arguments"),
    [
        ("date", "canary", {}),
        ("date", 5, {}),
        ("date", WHEN, {"style": "canary"}),
        ("date", WHEN, {"tz": "canary"}),
        ("datetime", "2026-03-14T23:09:26", {}),
        ("datetime", "9999-12-31T23:59:59-01:00", {"tz": "Asia/Tokyo"}),
        ("number", "canary", {}),
        ("number", None, {}),
        ("number", True, {}),
        ("number", float("nan"), {}),
        ("number", "1e999999", {}),
        ("money", 1, {"currency": "canary"}),
        ("money", 1, {"currency": ["EUR"]}),
    ],
)
def test_what_can_not_be_written_is_refused(name: str, value: object, arguments: dict[str, object]) -> None:
    """A value that is none of the kind is a fault whose message does not repeat it."""
    with pytest.raises(PrintError) as refusal:
        filters_of(Locale("en"))[name](value, **arguments)
    assert "canary" not in str(refusal.value)


@pytest.mark.parametrize("first", [0.0, -0.0])
def test_what_is_remembered_is_no_other_value(first: float) -> None:
    """Values that Python takes for equal are written each as it reads, whichever came before."""
    number = filters_of(Locale("en"))["number"]
    for value in (first, -first, first):
        assert number(value) == ("-0" if str(value) == "-0.0" else "0")
    assert number(1) == number("1") == number(1.0) == "1"
    with pytest.raises(PrintError):
        number(True)
