"""`mailkeep templates`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mailkeep.cli.templates import app


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"MAIL_TEMPLATE_DIR": ""})


def test_check_lists_every_problem(tmp_path: Path) -> None:
    """A broken catalog ends with 1 and each problem on a line, or all in JSON."""
    (tmp_path / "note/en").mkdir(parents=True)
    result = _run("check", str(tmp_path))
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "note/en/subject: is missing",
        "note/en/text: is missing",
        "note/template.toml: is missing",
    ]
    as_json = json.loads(_run("check", str(tmp_path), "--json").stdout)
    assert not as_json["ok"]
    assert [problem["path"] for problem in as_json["problems"]] == [
        "note/en/subject",
        "note/en/text",
        "note/template.toml",
    ]


def test_check_accepts_the_shipped_catalog() -> None:
    """Without a folder the shipped catalog is checked and its version told."""
    result = _run("check")
    assert result.exit_code == 0
    version = json.loads(_run("check", "--json").stdout)["version"]
    assert version in result.stdout


def test_list_names_templates_locales_and_variables() -> None:
    """One line a template; JSON tells each variable's traits."""
    rows = [line.split() for line in _run("list").stdout.splitlines()]
    assert ["login-code", "de", "en", "fr", "code", "expires_in_minutes"] in rows
    listed = {template["id"]: template for template in json.loads(_run("list", "--json").stdout)}
    assert listed["login-code"]["variables"]["code"]["sensitive"] is True


def test_render_takes_examples_files_and_options(tmp_path: Path) -> None:
    """A value comes from --var, else from the file, else from the example."""
    file = tmp_path / "vars.json"
    file.write_text('{"code": "111111", "expires_in_minutes": 7}')
    options = ("--locale", "de-AT", "--part", "text", "--vars-file", str(file), "--var", "code=0042")
    text = _run("render", "login-code", *options).stdout
    assert "0042" in text
    assert "7 Minuten" in text
    assert "482913" in _run("render", "login-code", "--part", "subject").stdout


def test_render_shows_all_or_writes_a_file(tmp_path: Path) -> None:
    """All parts come with the locales that were tried; --out takes the bytes of one part; JSON has everything."""
    shown = _run("render", "welcome", "--locale", "fr-CA").stdout
    assert shown.startswith("Locale: fr-CA > fr\nSubject: Bienvenue")
    assert "<!doctype html>" in shown
    out = tmp_path / "page.html"
    assert _run("render", "welcome", "--part", "html", "--out", str(out)).stdout == ""
    assert out.read_text().startswith("<!doctype html>")
    assert json.loads(_run("render", "welcome", "--json").stdout)["locale_chain"] == ["en"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("nope",), 1, "there are: login-code"),
        (("login-code", "--var", "kode=canary"), 1, "its variables are: code"),
        (("login-code", "--var", "canary"), 2, "NAME=VALUE"),
        (("login-code", "--var", "expires_in_minutes=canary"), 1, "such as 15"),
        (("login-code", "--var", 'expires_in_minutes="canary"'), 1, "must be an integer"),
        (("login-code", "--locale", "x"), 1, "BCP 47"),
        (("login-code", "--vars-file", "/nonexistent"), 1, "No such file"),
        (("login-code", "--vars-file", __file__), 1, "does not hold a JSON object"),
        (("login-code", "--out", "/nonexistent/file"), 1, "can't write"),
        (("login-code", "--dir", "/nonexistent"), 1, "can't be read as a folder"),
    ],
)
def test_render_says_what_is_wrong(arguments: tuple[str, ...], exit_code: int, message: str) -> None:
    """Each fault ends with its code and a line that says what to do, without the value."""
    result = _run("render", *arguments)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert result.stdout == ""
    assert "canary" not in result.stderr
