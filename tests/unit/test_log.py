"""Log lines: readable by machine and by eye, and free of what must not be read."""

import ast
import io
import json
import logging
import sys
from pathlib import Path

import pytest
import structlog

import mailkeep
from mailkeep.settings import Dsn, Secret
from mailkeep.telemetry import log
from mailkeep.telemetry.names import LOG_EVENTS

ADDRESS = "canary@example.org"


class Terminal(io.BytesIO):
    """A stream that calls itself a terminal."""

    def isatty(self):
        return True


class Full(io.BytesIO):
    """A stream on a full disk."""

    def write(self, _):
        raise OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def restored():
    """Leave structlog and logging as they were found."""
    handlers = logging.getLogger().handlers[:]
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers


def written(fields=None, *, event="it happened", level="info", log_format="json", stream=None, **options):
    """Return what one call writes."""
    stream = stream or io.BytesIO()
    log.configure(level, log_format, stream, **options)
    structlog.get_logger("attempt_scheduler").info(event, **(fields or {}))
    return stream.getvalue().decode()


def test_a_json_line_starts_with_when_how_bad_who_and_what():
    """One line, one object: timestamp, level, logger, event, then what the caller gave, in its order."""
    text = written({"delivery_id": "0198", "count": 3, "late": False, "reason": None})
    assert text.count("\n") == 1
    line = json.loads(text)
    assert list(line) == ["timestamp", "level", "logger", "event", "delivery_id", "count", "late", "reason"]
    assert line["timestamp"].endswith("+00:00")
    assert (line["level"], line["logger"], line["event"]) == ("info", "attempt_scheduler", "it happened")
    assert (line["count"], line["late"], line["reason"]) == (3, False, None)


def test_lines_below_the_level_are_not_written():
    """The level of the settings is the least severe that is written."""
    assert written(level="warning") == ""


def test_trace_ids_stand_in_every_line_where_there_are_any():
    """Ids come from the current trace; without one there are no such keys."""
    line = json.loads(written(trace_ids=lambda: ("a" * 32, "b" * 16)))
    assert (line["otel_trace_id"], line["otel_span_id"]) == ("a" * 32, "b" * 16)
    assert "otel_trace_id" not in json.loads(written())


def test_auto_is_console_on_a_terminal_and_json_elsewhere():
    """People get coloured text, everything else gets JSON."""
    assert written(log_format="auto").startswith("{")
    assert "\x1b[" in written(log_format="auto", stream=Terminal())
    assert written(log_format="json", stream=Terminal()).startswith("{")
    console = written({"count": 3}, log_format="console")
    assert "it happened" in console
    assert "count=3" in console
    assert "\x1b" not in console


@pytest.mark.parametrize(
    "value",
    [
        ADDRESS,
        f"550 5.1.1 <{ADDRESS}>: no such user",
        '"can ary"@example.org',
        "https://example.org/u?m=canary%40example.org",
        "canary\uff20example.org",
        [ADDRESS, {"who": ADDRESS}],
        {ADDRESS: ADDRESS},
        ValueError(f"bad: {ADDRESS}"),
        f"postgresql://mail:canary@db/mail?x={ADDRESS}",
        f"smtp://canary:***@{ADDRESS}",
        ADDRESS.encode(),
        Secret("canary"),
        Dsn("postgresql://mail:canary@db/mail"),
        [[[[["canary"]]]]],
    ],
)
def test_no_address_and_no_secret_is_written(value):
    """Whatever holds an address or a secret, nested or as bytes, error or URL, is masked, in both formats."""
    for log_format in ("json", "console"):
        text = written({"value": value}, event=f"for {ADDRESS}", log_format=log_format)
        assert "canary" not in text
        assert "can ary" not in text
        assert "value" in text


@pytest.mark.parametrize("key", sorted(log.REFUSED_KEYS))
def test_a_key_of_personal_data_keeps_only_its_numbers(key):
    """Under these keys text is refused whatever it looks like; counts and reply codes are not."""
    assert json.loads(written({key: "canary"}))[key] == "***"
    assert json.loads(written({key: ["canary"]}))[key] == "***"
    assert json.loads(written({key: 421}))[key] == 421


def test_a_masked_dsn_still_says_where():
    """A connection URL that is already masked is written whole, for the operator."""
    line = json.loads(
        written({"error": f"can't open {Dsn('postgresql://mail:pw@db.example.org:5432/mail')}"})
    )
    assert line["error"] == "can't open postgresql://mail:***@db.example.org:5432/mail"


def test_no_reply_can_forge_a_line():
    """Line breaks, escape sequences and lone surrogates are written as escapes, in both formats."""
    evil = 'ok\r\n{"event":"forged"}\x1b[2J\u2028\ud800'
    for log_format in ("json", "console"):
        text = written({"reason": evil, "more": [evil]}, event=evil, log_format=log_format)
        assert text.count("\n") == 1
        assert "\x1b" not in text
        assert "\\x1b" in text


def test_long_values_are_cut():
    """A line has a bound, whatever a server sends."""
    text = written({"reason": "x" * 1_000_000, "many": list(range(1_000_000))})
    assert len(text) < 5_000


def test_a_traceback_is_kept_without_addresses():
    """`exc_info` gives the traceback in `exception`, masked and bounded, with its line breaks."""
    stream = io.BytesIO()
    log.configure("info", "json", stream)
    try:
        int(ADDRESS)
    except ValueError:
        structlog.get_logger("recorder").exception("it broke")
    line = json.loads(stream.getvalue())
    assert line["level"] == "error"
    assert line["exception"].splitlines()[-1] == "ValueError: invalid literal for int() with base 10: …@…"
    assert "test_log.py" in line["exception"]


def test_lines_of_libraries_pass_the_same_choke_point():
    """Warnings of the standard logging come out in our form, masked; their chatter does not; configuring twice is once."""
    stream = io.BytesIO()
    for _ in range(2):
        log.configure("info", "json", stream)
    library = logging.getLogger("some.library")
    library.info("chatter")
    library.warning("lost %s", ADDRESS)
    library.critical("fell over %s", "hard")
    bridge = next(handler for handler in logging.getLogger().handlers if isinstance(handler, log._Bridge))
    bridge.handle(logging.LogRecord("some.library", logging.WARNING, "", 0, "%d", ("not a number",), None))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["lost …@…", "fell over hard"]
    assert [line["level"] for line in lines] == ["warning", "error"]
    assert lines[0]["logger"] == "some.library"


def test_a_line_that_can_not_be_written_is_dropped():
    """A full disk or a closed stream stops no mail."""
    written(stream=Full())
    closed = io.BytesIO()
    log.configure("info", "json", closed)
    closed.close()
    structlog.get_logger("service").info("it happened")


def test_standard_error_is_the_default(capfdbinary, monkeypatch):
    """Results go to standard output, so lines go to standard error."""
    with open(2, "wb", closefd=False) as stderr:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(stderr))
        log.configure("info", "json")
        structlog.get_logger("service").info("it happened")
        sys.stderr.detach()
    out, err = capfdbinary.readouterr()
    assert out == b""
    assert b"it happened" in err


def logged_events():
    """Return the literal event of every log call in the sources."""
    methods = {"debug", "info", "warning", "error", "critical", "exception"}
    events = set()
    for path in Path(mailkeep.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in methods
            ):
                said = node.args[0] if node.args else None
                if isinstance(said, ast.Constant):
                    events.add(said.value)
    return events


def test_every_event_is_declared_and_every_declared_event_is_logged():
    """The table of `names` and the calls in the sources are the same set, so the reference page is true."""
    declared = [event.event for event in LOG_EVENTS]
    assert len(set(declared)) == len(declared)
    assert set(declared) == logged_events()
    assert all(event.meaning.endswith(".") for event in LOG_EVENTS)
