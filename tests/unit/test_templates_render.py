"""Rendering: what a command's variables may be, and that they stay data."""

from typing import Any

import pytest

from mailkeep.core.command import CommandError, Limits
from mailkeep.templates.catalog import Catalog
from mailkeep.templates.render import FUEL

DECLARATION = """
[variables.name]
type = "string"
sensitive = true
example = "Ann"
[variables.rows]
type = "list"
required = false
example = [{ label = "a" }]
[variables.link]
type = "url"
required = false
example = "https://example.com/"
"""
CANARY = "canary-5417"


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Give a catalog that uses variables in each way."""
    root = tmp_path_factory.mktemp("catalog")
    files = {
        "note/template.toml": DECLARATION,
        "note/en/subject": "{{ name }}",
        "note/en/text": "{% for row in rows or [] %}{{ row.label }}{{ name }}\n{% endfor %}",
        "note/en/html": '<a href="{{ link or "" }}">{{ name }}</a>',
        "sum/template.toml": '[variables.n]\ntype = "object"\nexample = { a = 1, b = 2 }\n',
        "sum/en/subject": "sum",
        "sum/en/text": "{{ n.a + n.b }}{{ n.a|money('EUR') }}",
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return Catalog.load(root)


def _refusal(catalog: Catalog, template_id: str, variables: dict[str, Any], **limits: int) -> CommandError:
    with pytest.raises(CommandError) as refusal:
        catalog.render(template_id, "en", variables, Limits(**limits))
    assert CANARY not in f"{refusal.value}{refusal.value.field}"
    return refusal.value


def test_the_result_says_how_it_came_about(catalog: Catalog) -> None:
    """Locale, chain, version and sensitivity come with the content."""
    rendered = catalog.render("note", "en-AU", {"name": "Bo", "rows": [{"label": "x"}]}, Limits())
    assert (rendered.subject, rendered.text, rendered.html) == ("Bo", "xBo\n", '<a href="">Bo</a>')
    assert (rendered.template_id, rendered.locale, rendered.locale_chain) == ("note", "en", ("en-AU", "en"))
    assert rendered.catalog_version == catalog.version
    assert rendered.sensitive
    assert catalog.render("sum", "en", {"n": {"a": 1, "b": 2}}, Limits()).html is None


@pytest.mark.parametrize(
    ("variables", "code", "field"),
    [
        ({}, "missing_variable", "payload.variables.name"),
        ({"name": None}, "missing_variable", "payload.variables.name"),
        ({"name": "x", "age": CANARY}, "unknown_field", "payload.variables.age"),
        ({"name": "x", "not a name": CANARY}, "unknown_field", "payload.variables"),
        ({"name": 5}, "invalid_field", "payload.variables.name"),
        ({"name": [CANARY]}, "invalid_field", "payload.variables.name"),
        ({"name": "x", "rows": CANARY}, "invalid_field", "payload.variables.rows"),
        ({"name": "x", "rows": [object()]}, "invalid_field", "payload.variables.rows"),
        ({"name": "x", "rows": [{}]}, "missing_variable", "payload.variables"),
        ({"name": "x", "rows": [{"label": [CANARY]}]}, "invalid_field", "payload.variables"),
        ({"name": "x", "rows": [CANARY]}, "missing_variable", "payload.variables"),
        ({"name": "x", "link": f"javascript:{CANARY}"}, "invalid_field", "payload.variables.link"),
        (
            {"name": "x", "link": f"javascript://a.example/%0a{CANARY}"},
            "invalid_field",
            "payload.variables.link",
        ),
        ({"name": "x", "link": f"https://a.example/{CANARY}\n"}, "invalid_field", "payload.variables.link"),
        ({"name": f"{CANARY}\r\nBcc: x"}, "invalid_field", "payload.variables"),
        ({"name": f"{CANARY}\n"}, "invalid_field", "payload.variables"),
        ({"name": "x" * 501}, "too_large", "payload.variables"),
    ],
)
def test_faulty_variables_are_refused(
    catalog: Catalog, variables: dict[str, Any], code: str, field: str
) -> None:
    """Each fault has its code and field, and no message repeats a value."""
    refusal = _refusal(catalog, "note", variables)
    assert (refusal.code, refusal.field) == (code, field)


def test_faults_of_the_engine_do_not_repeat_values(catalog: Catalog) -> None:
    """An operation that a value does not allow is refused by its place alone."""
    assert _refusal(catalog, "sum", {"n": {"a": CANARY, "b": 2}}).code == "invalid_field"
    assert _refusal(catalog, "sum", {"n": {"a": 1, "b": [CANARY]}}).code == "invalid_field"


def test_nesting_is_bounded(catalog: Catalog) -> None:
    """Variables nested deeper than the limit are too large."""
    nested: Any = "x"
    for _ in range(20):
        nested = [nested]
    assert _refusal(catalog, "note", {"name": "x", "rows": nested}).code == "too_large"


@pytest.mark.parametrize("template_id", ["other", "", "../note", "note/en", "_shared", "note\x00"])
def test_ids_are_looked_up(catalog: Catalog, template_id: str) -> None:
    """Only the id of a parsed template finds one; nothing is ever a path."""
    assert _refusal(catalog, template_id, {}).code == "unknown_template"


@pytest.mark.parametrize("locale", ["../en", "e", "en_US", "", "en\x00"])
def test_a_malformed_locale_is_refused(catalog: Catalog, locale: str) -> None:
    """What is no language tag is not answered in the default locale."""
    with pytest.raises(CommandError) as refusal:
        catalog.render("note", locale, {"name": "x"}, Limits())
    assert refusal.value.code == "invalid_locale"


def test_values_are_data(catalog: Catalog) -> None:
    """A value that looks like a template or like html is shown as it is."""
    rendered = catalog.render("note", "en", {"name": "{{ 7*7 }}<b>&\"'"}, Limits())
    assert rendered.subject == "{{ 7*7 }}<b>&\"'"
    assert rendered.html == '<a href="">{{ 7*7 }}&lt;b&gt;&amp;&quot;&#x27;</a>'


def test_output_is_bounded_while_it_is_made(catalog: Catalog) -> None:
    """Many rows of a long value stop at the bound of the body instead of filling memory."""
    variables = {"name": "x" * 400, "rows": [{"label": "y" * 10_000}] * 200}
    refusal = _refusal(catalog, "note", variables, body_bytes=100_000)
    assert (refusal.code, "would print more" in refusal.message) == ("too_large", True)
    assert len(catalog.render("note", "en", variables, Limits()).text) == 200 * 10_401


def test_escaped_output_is_bounded_as_well(catalog: Catalog) -> None:
    """What grows beyond the bound by being escaped is too large."""
    assert _refusal(catalog, "note", {"name": '"' * 400}, body_bytes=500).code == "too_large"


def test_work_is_bounded(catalog: Catalog) -> None:
    """More rows than the fuel lasts for are too large, however short."""
    assert _refusal(catalog, "note", {"name": "", "rows": [{"label": ""}] * FUEL}).code == "too_large"
