"""The pages: generated ones follow the code, the others name what there is, and their links lead somewhere."""

import re
import runpy
from pathlib import Path

import pytest

from mailkeep.core.command import FailureCode
from mailkeep.faults import FaultPoint
from mailkeep.intake.problems import HttpCode
from mailkeep.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = runpy.run_path(str(DOCS / "generate.py"))["pages"]()
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("changelog.d/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
SETTING = re.compile(r"\bMAIL_[A-Z_]+[A-Z]\b")
FAMILIES = ("MAIL_GUARANTEE", "MAIL_LIMIT")  # written MAIL_LIMIT_*


def read(path):
    """Return the text of a page of `docs`."""
    return (DOCS / path).read_text(encoding="utf-8")


def anchors(page):
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_a_generated_page_is_what_the_code_says(name):
    """The committed page equals the generated one; `make docs` writes it anew."""
    assert read(f"reference/{name}") == GENERATED[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """A relative link names a file or folder that exists and, behind #, one of its headings."""
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_are_named_exist(page):
    """No page names a setting that Mailkeep would refuse."""
    rows = Settings().describe()
    known = {row.name for row in rows} | {f"{row.name}_FILE" for row in rows if row.secret} | set(FAMILIES)
    assert set(SETTING.findall(page.read_text(encoding="utf-8"))) <= known


@pytest.mark.parametrize("code", [*FailureCode, *HttpCode])
def test_every_problem_is_in_the_http_reference(code):
    """Each code of a problem document is named there."""
    assert f"`{code}`" in read("reference/http-api.md")


@pytest.mark.parametrize("point", FaultPoint)
def test_every_fault_point_is_in_the_crash_table(point):
    """The page on durability has a row for each point at which a process can be killed on purpose."""
    assert re.search(rf"^\| `{point}` \|", read("explanation/durability.md"), re.MULTILINE)
