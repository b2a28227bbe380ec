"""Loading a catalog: what is a fault, and that every one is found."""

import os
from pathlib import Path

import pytest

from mailkeep.core.command import Limits
from mailkeep.templates import folder
from mailkeep.templates.catalog import Catalog, CatalogError

GOOD = {
    "note/template.toml": '[variables.name]\ntype = "string"\nexample = "Ann"\n',
    "note/en/subject": "For {{ name }}\n",
    "note/en/text": "Hello {{ name }}\n",
}


def _write(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root


def _problems(root: Path) -> dict[str, str]:
    with pytest.raises(CatalogError) as refusal:
        Catalog.load(root)
    return {problem.path: problem.message for problem in refusal.value.problems}


def test_a_good_catalog_loads(tmp_path: Path) -> None:
    """A template with its declaration and the default locale is all it takes."""
    catalog = Catalog.load(_write(tmp_path, GOOD))
    assert catalog.templates["note"].locales == ("en",)
    assert catalog.warnings == ()
    assert catalog.render("note", "en", {"name": "Bo"}, Limits()).subject == "For Bo"


@pytest.mark.parametrize(
    ("path", "text", "where", "message"),
    [
        ("note/en/text", "{% if %}", "note/en/text", "line 1: "),
        ("note/en/text", "{{ name }}{{ age }}", "note/en/text", "`age`"),
        ("note/en/text", "{{ name|shout }}", "note/en", "filter shout is unknown"),
        ("note/en/text", "{{ name }}{% include 'other/text' %}", "note/en/text", "`other/text`"),
        ("note/en/text", "{% include name %}", "note/en/text", "in quotes"),
        ("note/en/text", "{{ name }}{{ none }}", "note/en", "neither text nor a number"),
        ("note/en/text", "{{ name }}{% for x in range(100000) %}{% endfor %}", "note/en", "too much work"),
        ("note/en/text", "{{ debug() }}{{ name }}", "note/en/text", "`debug`"),
        ("note/en/subject", "two\n{{ name }}\nlines", "note/en", "rendered subject"),
        ("note/en/notes", "x", "note/en/notes", "is unknown"),
        ("note/readme", "x", "note/readme", "is unknown"),
        ("readme", "x", "readme", "top holds folders only"),
        ("No-Te/en/text", "x", "No-Te", "no template id"),
        ("note/english/text", "x", "note/english", "CLDR"),
        ("note/xx/text", "x", "note/xx", "CLDR"),
        ("note/pt_BR/text", "x", "note/pt_BR", "CLDR"),
        ("note/pt-br/text", "x", "note/pt-br", "name it pt-BR"),
        ("note/de/text", "Hallo {{ name }}", "note/de/subject", "is missing"),
        ("other/en/subject", "x", "other/template.toml", "is missing"),
        ("note/en/deep/text", "x", "note/en/deep", "too deep"),
        ("_shared/de/foot.text", "x", "_shared/en/foot.text", "is missing"),
        ("note/template.toml", "x", "note/template.toml", "is not TOML"),
        ("note/template.toml", "more = 1", "note/template.toml", "unknown key `more`"),
        ("note/template.toml", '[variables.dir]\ntype = "string"\nexample = ""\n', "note/template.toml", "already has"),
        ("note/template.toml", '[variables.name]\ntype = "string"\n', "note/template.toml", "`example`"),
        ("note/template.toml", '[variables.name]\ntype = "text"\nexample = ""\n', "note/template.toml", "`name`"),
        ("note/template.toml", '[variables.name]\ntype = "url"\nexample = "x"\n', "note/template.toml", "URL"),
        ("note/template.toml", '[variables."a-b"]\ntype = "url"\nexample = "x"\n', "note/template.toml", "letters"),
    ],
)  # fmt: skip
def test_a_fault_is_found_where_it_is(tmp_path: Path, path: str, text: str, where: str, message: str) -> None:
    """One fault in a good catalog stops the load, and its path and message say where and what."""
    assert message in _problems(_write(tmp_path, GOOD | {path: text}))[where]


def test_every_problem_is_listed(tmp_path: Path) -> None:
    """Faults of different kinds in different templates come in one list, ordered by path."""
    files = GOOD | {
        "a/template.toml": "x",
        "a/en/text": "x",
        "b/template.toml": '[variables.n]\ntype = "integer"\nexample = "x"\n[variables.m]\ntype = "number"\n',
        "b/de/subject": "{{ n }}{{ zzz }}",
        "b/de/text": "{% endif %}",
        "c/template.toml": "",
        "c/en/subject": "c",
        "c/en/text": "{{ 1|nothing }}",
    }
    with pytest.raises(CatalogError) as refusal:
        Catalog.load(_write(tmp_path, files))
    found = [problem.path for problem in refusal.value.problems]
    assert found == [
        "a/en/subject",
        "a/template.toml",
        "b",
        "b/de/subject",
        "b/de/text",
        "b/template.toml",
        "b/template.toml",
        "c/en",
    ]
    assert all(problem.message in str(refusal.value) for problem in refusal.value.problems)


def test_an_optional_variable_must_render_without_a_value(tmp_path: Path) -> None:
    """The load tries what a command may leave out: printing an optional variable unasked is a fault."""
    optional = GOOD["note/template.toml"] + "required = false\n"
    assert (
        "only the required" in _problems(_write(tmp_path, GOOD | {"note/template.toml": optional}))["note/en"]
    )


def test_both_sides_of_a_boolean_are_rendered(tmp_path: Path) -> None:
    """A fault in the branch that the example does not take is found too."""
    files = GOOD | {
        "note/template.toml": GOOD["note/template.toml"]
        + '[variables.vip]\ntype = "boolean"\nexample = true\n',
        "note/en/text": "{{ name }}{% if not vip %}{{ name|shout }}{% endif %}",
    }
    assert "every boolean reversed" in _problems(_write(tmp_path, files))["note/en"]


def test_the_default_locale_is_needed(tmp_path: Path) -> None:
    """A template without `en` can't answer every request."""
    files = {path.replace("/en/", "/de/"): text for path, text in GOOD.items()}
    assert "default locale" in _problems(_write(tmp_path, files))["note"]


def test_files_that_are_no_text_are_faults(tmp_path: Path) -> None:
    """A link out of the catalog, a dead or looping link, a FIFO, a large file and another encoding are all named."""
    secret = tmp_path / "secret"
    secret.write_text("outside")
    root = _write(tmp_path / "catalog", GOOD)
    (root / "note/de").symlink_to(tmp_path)
    (root / "note/fr").mkdir()
    (root / "note/fr/text").symlink_to(secret)
    (root / "note/fr/subject").symlink_to(root / "nowhere")
    (root / "note/fr/html").symlink_to(root / "note/fr/html")
    os.mkfifo(root / "note/it")
    (root / "note/es").write_bytes(b"\xff")
    (root / "note/pt").write_bytes(b"x" * (folder.MAX_FILE_BYTES + 1))
    problems = _problems(root)
    assert "leaves the catalog" in problems["note/de"]
    assert "leaves the catalog" in problems["note/fr/text"]
    assert "neither a regular file" in problems["note/it"]
    assert "not UTF-8" in problems["note/es"]
    assert "larger than" in problems["note/pt"]
    assert {"note/fr/subject", "note/fr/html"} <= problems.keys()


def test_links_within_the_catalog_are_followed(tmp_path: Path) -> None:
    """A catalog mounted by Kubernetes is made of links through a dot folder; that is no fault."""
    _write(tmp_path / "..2026", GOOD)
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "note").symlink_to("..data/note")
    assert Catalog.load(tmp_path).templates.keys() == {"note"}


def test_a_huge_catalog_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stops at the bounds of files and of bytes, and says so."""
    _write(tmp_path, GOOD)
    monkeypatch.setattr(folder, "MAX_FILES", 3)
    assert "3 files and folders" in str(_problems(tmp_path))
    monkeypatch.setattr(folder, "MAX_FILES", 100)
    monkeypatch.setattr(folder, "MAX_CATALOG_BYTES", 20)
    assert "beyond 20 bytes" in str(_problems(tmp_path))


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_catalog_is_a_folder_with_templates(tmp_path: Path, name: str) -> None:
    """No folder, a file in its place and an empty folder are told apart from a catalog."""
    (tmp_path / "file").write_text("x")
    assert "can't be read as a folder" in str(_problems(tmp_path / name))
    (tmp_path / "empty").mkdir()
    assert "holds no template" in _problems(tmp_path / "empty")["."]


def test_what_one_can_live_with_is_a_warning(tmp_path: Path) -> None:
    """An unused variable and a locale without the html that the default has don't stop the start."""
    files = GOOD | {
        "note/template.toml": GOOD["note/template.toml"] + '[variables.spare]\ntype = "list"\nexample = []\n',
        "note/en/html": "<p>{{ name }}</p>",
        "note/de/subject": "x",
        "note/de/text": "x",
    }
    warnings = {problem.path: problem.message for problem in Catalog.load(_write(tmp_path, files)).warnings}
    assert "`spare`" in warnings["note/template.toml"]
    assert "is missing" in warnings["note/de/html"]


def test_the_version_follows_every_file(tmp_path: Path) -> None:
    """Equal contents have the same version wherever they lie; any change, also of a shared file, gives another."""
    files = GOOD | {"_shared/foot.text": "bye"}
    version = Catalog.load(_write(tmp_path / "a", files)).version
    assert len(version) == 16
    assert Catalog.load(_write(tmp_path / "b", files)).version == version
    changed = files | {"_shared/foot.text": "bye bye"}
    assert Catalog.load(_write(tmp_path / "c", changed)).version != version
    renamed = GOOD | {"_shared/feet.text": "bye"}
    assert Catalog.load(_write(tmp_path / "d", renamed)).version != version


def test_shared_files_are_chosen_by_locale(tmp_path: Path) -> None:
    """The same name means the shared file nearest to the locale that renders, its default where none is near."""
    files = GOOD | {
        "note/en/text": "{{ name }}{% include '_shared/foot.text' %}",
        "note/de-AT/subject": "x",
        "note/de-AT/text": "{{ name }}{% include '_shared/foot.text' %}",
        "note/fr/subject": "x",
        "note/fr/text": "{{ name }}{% include '_shared/foot.text' %}{% include '_shared/plain.text' %}",
        "_shared/en/foot.text": " bye {{ locale }}",
        "_shared/de/foot.text": " servus {{ locale }}",
        "_shared/plain.text": " ({{ dir }})",
    }
    catalog = Catalog.load(_write(tmp_path, files))
    texts = [catalog.render("note", tag, {"name": "A"}, Limits()).text for tag in ("en", "de-AT", "fr")]
    assert texts == ["A bye en", "A servus de-AT", "A bye fr (ltr)"]


def test_shared_files_use_what_is_declared(tmp_path: Path) -> None:
    """A name that only the shared file uses is missed at the load, in that file, for the template that lacks it."""
    files = GOOD | {
        "note/en/text": "{{ name }}{% include '_shared/a.text' %}",
        "_shared/a.text": "{% include '_shared/b.text' %}",
        "_shared/b.text": "{{ other }}{{ name }}",
    }
    assert "`other`, which note/template.toml" in _problems(_write(tmp_path, files))["_shared/b.text"]


def test_a_shared_file_stands_in_one_place(tmp_path: Path) -> None:
    """One name both for all locales and by locale is ambiguous and so a fault."""
    files = GOOD | {"_shared/a.text": "", "_shared/en/a.text": ""}
    assert "keep one" in _problems(_write(tmp_path, files))["_shared/a.text"]
