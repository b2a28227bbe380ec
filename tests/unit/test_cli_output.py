"""What the verbs share: a fast start, plain tables, one clear line for a fault."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mailkeep.cli import app, output
from mailkeep.store.migrate import migrations
from mailkeep.templates.catalog import SHIPPED_CATALOG, Catalog
from mailkeep.version import __version__

HEAVY = {
    "asyncio",
    "asyncpg",
    "email_validator",
    "msgspec",
    "redis",
    "rich.console",
    "starlette",
    "structlog",
}


def test_help_loads_nothing_heavy():
    """`mailkeep --help` imports typer, the standard library and the verbs' own files; nothing they work with."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mailkeep", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not HEAVY & imported


def test_help_names_every_verb_and_an_example():
    """Without arguments the verbs and a first thing to try are shown, on a screen of 80 columns."""
    shown = CliRunner().invoke(app, []).output
    for verb in app.registered_commands:
        assert f"  {verb.name or verb.callback.__name__}  " in shown
    for group in app.registered_groups:
        assert f"  {group.name}  " in shown
    assert "..." not in shown.partition("Commands:")[2]
    assert "mailkeep dev --examples" in shown


def test_version():
    """`--version` tells build, schema and catalog, for people and for programs; a bare `--json` is wrong usage."""
    schema, catalog = migrations()[-1].version, Catalog.load(SHIPPED_CATALOG).version
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (
        0,
        f"mailkeep {__version__} (schema {schema}, catalog {catalog})\n",
    )
    done = CliRunner().invoke(app, ["--version", "--json"])
    versions = {"version": __version__, "schema_version": schema, "catalog_version": catalog}
    assert json.loads(done.output) == versions
    assert CliRunner().invoke(app, ["--json"]).exit_code == 2
    done = CliRunner().invoke(app, ["--version"], env={"MAIL_TEMPLATE_DIR": "/nowhere"})
    assert (done.exit_code, "mailkeep templates check" in done.output) == (1, True)


def test_wrong_usage_is_exit_code_2_and_suggests():
    """A mistyped verb is answered with the one that was meant."""
    done = CliRunner().invoke(app, ["confg"])
    assert done.exit_code == 2
    assert "Did you mean 'config'?" in done.output


def test_table_aligns_all_but_the_last_column():
    """Columns are as wide as their widest cell; no line ends in blanks."""
    assert output.table(("ID", "STATUS"), [("1", "sent"), ("1234", ""), (5, None)]).splitlines() == [
        "ID    STATUS",
        "1     sent",
        "1234",
        "5     None",
    ]
    assert output.table(("A", "B"), []) == "A  B"


def test_nothing_in_a_table_steers_the_terminal():
    """Escape sequences and line breaks in a cell come out as visible escapes, one row a line."""
    shown = output.table(("REASON",), [("421\r\nno\x1b[2J\u2028",)])
    assert shown.splitlines() == ["REASON", "421\\r\\nno\\x1b[2J\\u2028"]


def test_json_is_indented_and_complete(capsys):
    """Plain data goes out as it is, for programs and for eyes."""
    output.print_json([{"id": "1", "ok": True}])
    assert capsys.readouterr().out == '[\n  {\n    "id": "1",\n    "ok": true\n  }\n]\n'


def test_a_fault_goes_to_standard_error_with_its_exit_code(capsys):
    """`fail` writes nothing to standard output, keeps its line breaks, and escapes what could steer a terminal."""
    with pytest.raises(SystemExit) as left:
        output.fail("can't reach x: no\x1b\n  start it", output.EXIT_UNAVAILABLE)
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (69, "")
    assert err == "mailkeep: can't reach x: no\\x1b\n  start it\n"
