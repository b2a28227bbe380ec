"""The pages of the benchmark follow its committed results."""

import runpy
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "benchmarks.py"))
PAGES = SCRIPT["pages"]()


@pytest.mark.parametrize("path", sorted(PAGES))
def test_a_committed_page_is_what_the_results_say(path):
    """The committed file equals the one made of bench/results.json; `make bench-docs` writes it anew."""
    assert (DOCS / path).read_text(encoding="utf-8") == PAGES[path]


@pytest.mark.parametrize("path", sorted(path for path in PAGES if path.endswith(".svg")))
def test_a_chart_is_a_picture_with_words(path):
    """Each chart is well-formed, names itself for those who can't see it, and stays inside its frame."""
    chart = ET.fromstring(PAGES[path])
    frame = [float(part) for part in chart.get("viewBox").split()]
    assert chart.find("{http://www.w3.org/2000/svg}title").text
    bars = chart.findall("{http://www.w3.org/2000/svg}rect")
    assert bars
    for bar in bars:
        assert float(bar.get("x")) + float(bar.get("width")) <= frame[2]
        assert float(bar.get("y")) + float(bar.get("height")) <= frame[3]


@pytest.mark.parametrize(
    ("cores", "said"),
    [
        (0.2, "smallest"),
        (10, "one PostgreSQL, with"),
        (30, "of up to 64 cores"),
        (100, "7 queues of 16 cores each, or 3 of 64"),
    ],
)
def test_the_engine_follows_the_cores(cores, said):
    """What carries a volume goes by the cores that PostgreSQL needs: one server while one does."""
    assert said in SCRIPT["_engine"](cores)


def test_a_quick_look_is_marked():
    """Figures that are no measurement say so above each table."""
    table = {
        "title": "a title",
        "quick": True,
        "facts": {},
        "base": "one",
        "runs": {"one": [{}]},
        "summary": {"one": {"delivered_per_s": {"min": 1.0, "median": 2.0, "max": 3.0}}},
        "ratios": {},
    }
    section = SCRIPT["_section"]
    labels = {"delivered_per_s": "delivered/s"}
    assert "not a measurement" in section("mail", table, labels)
    assert "not a measurement" not in section("mail", table | {"quick": False}, labels)
    assert "| delivered/s | 2 (1 to 3) |" in section("mail", table, labels)
