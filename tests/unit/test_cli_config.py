"""`mailkeep config`: every setting, where it came from, and everything that is wrong."""

import json
import os

import pytest
from typer.testing import CliRunner

from mailkeep.cli import app
from mailkeep.settings import Settings


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs `mailkeep config` in an environment of these MAIL_* alone."""
    for name in [name for name in os.environ if name.startswith("MAIL_")]:
        monkeypatch.delenv(name)

    def invoke(*options, **environ):
        return CliRunner().invoke(app, ["config", *options], env=environ)

    return invoke


def test_table_has_a_line_for_every_setting(run):
    """Name, origin and value of each setting, the given ones marked."""
    done = run(MAIL_SMTP_TIMEOUT="90s")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["NAME", "FROM", "VALUE"]
    assert len(lines) == 1 + len(Settings().describe())
    assert ["MAIL_SMTP_TIMEOUT", "environment", "1m30s"] in [line.split() for line in lines]
    assert ["MAIL_SMTP_DATA_TIMEOUT", "default", "10m"] in [line.split() for line in lines]


def test_no_secret_is_printed(run):
    """Secrets are *** in every form of output."""
    for options in ([], ["--json"]):
        done = run(*options, MAIL_POSTGRES_DSN="postgresql://mail:canary@db/mail")
        assert done.exit_code == 0
        assert "canary" not in done.output
        assert "postgresql://mail:***@db/mail" in done.stdout


def test_json_carries_the_documentation_too(run):
    """For programs each setting comes with its origin, default, notation and meaning."""
    rows = {row["name"]: row for row in json.loads(run("--json", MAIL_LOG_LEVEL="debug").stdout)}
    assert rows["MAIL_LOG_LEVEL"] == {
        "name": "MAIL_LOG_LEVEL",
        "value": "debug",
        "source": "environment",
        "default": "info",
        "notation": "debug | info | warning | error",
        "meaning": "The least severe log line that is written.",
        "secret": False,
    }


def test_every_problem_is_printed_at_once(run):
    """A configuration that can't be used leaves with 78 and one line a problem on standard error."""
    done = run(MAIL_LOG_LEVEL="loud", MAIL_SMTP_MODE="smtp", MAIL_LOGLEVEL="debug")
    assert (done.exit_code, done.stdout) == (78, "")
    assert done.stderr.splitlines() == [
        "mailkeep: the configuration can't be used",
        "  MAIL_LOG_LEVEL: must be one of: debug, info, warning, error",
        "  MAIL_SMTP_ADDR: is required when MAIL_SMTP_MODE=smtp, unless MAIL_ROUTES_FILE has a [hop.default]",
        "  MAIL_SMTP_FROM_EMAIL: is required when MAIL_SMTP_MODE=smtp",
        "  MAIL_LOGLEVEL: is not a setting of Mailkeep; did you mean MAIL_LOG_LEVEL?",
        "mailkeep config --reference shows every setting",
    ]


def test_the_reference_needs_no_valid_configuration(run):
    """The reference page is a Markdown table of every setting, whatever this environment holds."""
    done = run("--reference", MAIL_LOG_LEVEL="loud")
    assert done.exit_code == 0
    body = [line for line in done.stdout.splitlines() if line.startswith("| `MAIL_")]
    assert len(body) == len(Settings().describe())
    assert all(line.count("|") == 5 for line in body)
    assert "| `MAIL_SMTP_PASSWORD` | text, *secret* | no login | Password of that login. |" in body
