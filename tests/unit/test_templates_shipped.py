"""The catalog that ships with the package."""

from html.parser import HTMLParser

import pytest

from mailkeep.core.command import Limits
from mailkeep.templates.catalog import SHIPPED_CATALOG, Catalog
from mailkeep.templates.render import Rendered

CATALOG = Catalog.load(SHIPPED_CATALOG)
EVERY = [(name, tag) for name, template in CATALOG.templates.items() for tag in template.locales]
VOID = {"meta", "br", "img", "hr", "link"}


def _render(template_id: str, locale: str, **given: object) -> Rendered:
    examples = CATALOG.templates[template_id].declaration.samples()["the examples"]
    return CATALOG.render(template_id, locale, examples | given, Limits())


class _Balance(HTMLParser):
    """Fails on a tag that closes nothing; keeps what is open and what was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_is_complete() -> None:
    """It loads without warnings and has each template with html in English, German and French."""
    assert CATALOG.warnings == ()
    assert CATALOG.templates.keys() >= {"login-code", "welcome", "password-reset", "order-confirmation"}
    for template in CATALOG.templates.values():
        assert set(template.locales) == template.html_locales == {"de", "en", "fr"}
        assert template.declaration.description


@pytest.mark.parametrize(("template_id", "locale"), EVERY)
def test_html_is_well_formed_and_self_contained(template_id: str, locale: str) -> None:
    """Tags balance, the language is named, tables for layout say so, and nothing is loaded from anywhere."""
    rendered = _render(template_id, locale)
    assert rendered.html
    page = _Balance()
    page.feed(rendered.html)
    assert page.open == []
    assert ("html", {"lang": locale, "dir": "ltr"}) in page.seen
    tags = [tag for tag, _ in page.seen]
    assert tags.count("h1") == tags.count("title") == 1
    assert not {"img", "link", "script"} & set(tags)
    for _, attributes in page.seen:
        assert "src" not in attributes
    for tag, attributes in page.seen:
        if tag == "table":
            assert attributes.get("role") == "presentation" or "th" in tags


@pytest.mark.parametrize("locale", ["de", "en", "fr"])
def test_the_login_code_shows_its_code(locale: str) -> None:
    """The code stands in subject, text and html, is sensitive, and the unit of time agrees in number."""
    rendered = _render("login-code", locale, code="020406", expires_in_minutes=1)
    assert rendered.sensitive
    assert "020406" in rendered.subject
    assert "\n    020406\n" in rendered.text
    assert rendered.html
    assert "020406" in rendered.html
    unit = {"de": "1 Minute ", "en": "1 minute ", "fr": "1 minute "}[locale]
    assert unit in rendered.text


@pytest.mark.parametrize(("locale", "total"), [("de", "46,65\xa0€"), ("en", "€46.65"), ("fr", "46,65\xa0€")])
def test_the_order_is_written_in_its_locale(locale: str, total: str) -> None:
    """Money is written as the readers do, in text and html, and what was not given is left out."""
    full = _render("order-confirmation", locale)
    assert full.html
    assert total in full.text
    assert total in full.html
    bare = _render("order-confirmation", locale, shipping=None, delivery_on=None, order_url=None)
    assert len(bare.text) < len(full.text)
    assert "https://" not in bare.text
