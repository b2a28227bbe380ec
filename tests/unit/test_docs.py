"""The pages: generated ones follow the code, the others name what there is, and their links lead somewhere."""

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from mailkeep.core.command import FailureCode
from mailkeep.faults import FaultPoint
from mailkeep.intake.problems import HttpCode
from mailkeep.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CHANGELOG = runpy.run_path(str(DOCS / "changelog.py"))["changelog"]
MANUAL = runpy.run_path(str(DOCS / "manpages.py"))["pages"]()
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


@pytest.mark.parametrize("name", sorted(MANUAL))
def test_a_manual_page_is_what_the_command_line_says(name):
    """The committed page equals the generated one, and mandoc finds nothing to warn of."""
    page = DOCS / "man" / name
    assert page.read_text(encoding="ascii") == MANUAL[name]
    if shutil.which("mandoc"):
        lint = ["mandoc", "-T", "lint", "-W", "warning", page]
        done = subprocess.run(lint, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")


def test_there_is_a_manual_page_for_each_verb_and_no_other():
    """Verbs that are gone leave no page behind."""
    assert {page.name for page in (DOCS / "man").iterdir()} == MANUAL.keys()


def test_the_changelog_holds_every_fragment():
    """The notes of this version are what `make changelog` makes of the fragments."""
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8") == CHANGELOG()


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


def test_the_glossary_leads_to_pages_that_use_its_words():
    """Words stand in their order, each once, and each is linked to a page that uses it."""
    rows = re.findall(r"^\| \[(.+?)\]\((.+?)\) \| \S", read("glossary.md"), re.MULTILINE)
    words = [word for word, _ in rows]
    assert len(words) > 40
    assert words == sorted(set(words))
    assert len(re.findall(r"^\| (?!word|---)", read("glossary.md"), re.MULTILINE)) == len(words)
    for word, link in rows:
        used = r"\s+".join(rf"{re.escape(part[:4])}\w*" for part in word.split())
        assert re.search(rf"\b{used}", read(link.partition("#")[0]), re.IGNORECASE), word


def test_every_picture_is_shown_and_every_page_of_the_console_has_four():
    """Light and dark, on a desk and on a phone; `make screenshots` makes them."""
    shots = runpy.run_path(str(DOCS / "screenshots.py"))
    names = {f"{page}-{scheme}-{screen}.png" for page in shots["PAGES"] for scheme, screen in shots["LOOKS"]}
    assert {picture.name for picture in (DOCS / "images").glob("*.png")} == names
    shown = read("how-to/console.md")
    assert {name for name in names if f"../images/{name}" not in shown} == set()


@pytest.mark.parametrize("code", [*FailureCode, *HttpCode])
def test_every_problem_is_in_the_http_reference(code):
    """Each code of a problem document is named there."""
    assert f"`{code}`" in read("reference/http-api.md")


@pytest.mark.parametrize("point", FaultPoint)
def test_every_fault_point_is_in_the_crash_table(point):
    """The page on durability has a row for each point at which a process can be killed on purpose."""
    assert re.search(rf"^\| `{point}` \|", read("explanation/durability.md"), re.MULTILINE)
