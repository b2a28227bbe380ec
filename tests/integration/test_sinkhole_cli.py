"""`mailkeep sinkhole` as a process."""

import contextlib
import json
import os
import signal
import smtplib
import subprocess
import sys
import threading
from collections import Counter

import pytest
import trustme
from typer.testing import CliRunner

from mailkeep.cli.sinkhole import app
from mailkeep.sinkhole.capture import read_capture_file

COMMAND = (sys.executable, "-c", "from mailkeep.cli.sinkhole import app; app()")
STOP_TIMEOUT_S = 10
MESSAGES_MAX = 100_000  # more than a sinkhole takes before it is killed


class Running:
    """A sinkhole process that prints JSON."""

    def __init__(self, tmp_path, *arguments, command=()):
        environment = os.environ | {
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "MAIL_ENVIRONMENT": "development",
        }
        self.process = subprocess.Popen(
            [*COMMAND, *command, "--port", "0", "--http", "127.0.0.1:0", *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.started = self.event()

    def event(self):
        """Return the next line."""
        return json.loads(self.process.stdout.readline())

    def client(self):
        """Connect with the standard library's client."""
        return smtplib.SMTP("127.0.0.1", self.started["port"], "client.test", timeout=10)

    def end(self, number=signal.SIGTERM):
        """Send the signal, return the exit code and what was printed meanwhile."""
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=STOP_TIMEOUT_S)
        return self.process.returncode, [json.loads(line) for line in output.splitlines()]


@pytest.fixture
def run(tmp_path):
    """Give a starter of sinkhole processes; they are killed at the end."""
    running = []

    def start(*arguments, **options):
        running.append(Running(tmp_path, *arguments, **options))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.process.communicate()


def call(*arguments, **environment):
    """Run the command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


def test_a_flip_of_the_mode_on_an_open_connection(run, tmp_path):
    """Run, defer, flip by `mode`, accept on the same connection; each answer is one line with masked addresses."""
    mode_file = tmp_path / "mode"
    sinkhole = run("--mode-file", mode_file)
    assert (sinkhole.started["event"], sinkhole.started["mode"]) == ("sinkhole_started", "defer")
    with sinkhole.client() as client:
        client.ehlo()
        assert client.mail("ann@a.test")[0] == 250
        assert client.rcpt("bob@sinkhole.test")[0] == 421
        assert client.rset()[0] == 250
        assert call("mode", "accept", "--mode-file", mode_file).exit_code == 0
        client.sendmail("ann@a.test", "bob@sinkhole.test", b"Subject: hi\r\n\r\nhi\r\n")
    code, events = sinkhole.end()
    answers = [event["reply"] for event in events if event["event"] == "sinkhole_answer"]
    assert answers == ["421 4.3.2 Service temporarily unavailable", "250 2.0.0 Ok"]
    assert events[-1] == {"event": "sinkhole_stopped", "message_count": 1}
    assert "bob@" not in str(events)
    assert code == 0


def test_the_mode_file_keeps_the_mode(run, tmp_path):
    """Without --mode a sinkhole begins with what the file holds; --mode writes it; the file of the user is the default."""
    mode_file = tmp_path / "mode"
    assert run("--mode", "bounce", "--mode-file", mode_file, command=("run",)).started["mode"] == "bounce"
    assert run("--mode-file", mode_file).started["mode"] == "bounce"
    assert run("--mode", "accept").started["mode"] == "accept"
    assert run().started["mode"] == "accept"


def test_starttls_under_uvloop(run, tmp_path):
    """The process, which runs on uvloop, speaks STARTTLS and implicit TLS."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    tls = ("--mode", "accept", "--tls-cert", certificate, "--tls-key", key)
    with run(*tls).client() as client:
        client.starttls()
        client.sendmail("ann@a.test", "bob@sinkhole.test", b"\r\nhi\r\n")
    port = run(*tls, "--implicit-tls").started["port"]
    with smtplib.SMTP_SSL("127.0.0.1", port, "client.test", timeout=10) as client:
        client.sendmail("ann@a.test", "bob@sinkhole.test", b"\r\nhi\r\n")


def test_a_killed_sinkhole_has_a_line_for_each_250(run, tmp_path):
    """After SIGKILL the file holds every message that was answered, and at most the one that was not."""
    capture_file = tmp_path / "capture.jsonl"
    sinkhole = run("--mode", "accept", "--mode-file", tmp_path / "mode", "--capture-file", capture_file)
    answered = Counter()
    client = sinkhole.client()
    threading.Timer(0.2, sinkhole.process.kill).start()
    with contextlib.suppress(smtplib.SMTPServerDisconnected, ConnectionError):
        for number in range(MESSAGES_MAX):
            client.sendmail("ann@a.test", f"{number}@sinkhole.test", f"Message-ID: <{number}@a.test>\r\n\r\n")
            answered[f"<{number}@a.test>"] += 1
    client.close()
    written = Counter(line.message_id for line in read_capture_file(capture_file))
    assert 0 < len(answered) < MESSAGES_MAX
    assert answered - written == Counter()
    assert (written - answered).total() <= 1


def test_mode_shows_and_says_what_changes(tmp_path):
    """`mode` tells the present mode; with a word it tells what changes and when."""
    mode_file = tmp_path / "mode"
    missing = call("mode", "--mode-file", mode_file)
    assert (missing.exit_code, "holds no mode yet" in missing.stderr) == (1, True)
    changed = call("mode", "defer-3x", "--mode-file", mode_file)
    assert "no mode -> defer-3x  (rcpt: 421 4.3.2 Service temporarily unavailable)" in changed.stdout
    assert "open ones from their next MAIL or RCPT on" in changed.stdout
    shown = call("mode", MAIL_SINKHOLE_MODE_FILE=str(mode_file))
    assert shown.stdout.startswith("defer-3x  (rcpt: 421 4.3.2")
    as_json = call("mode", "accept", "--mode-file", mode_file, "--json")
    assert json.loads(as_json.stdout) == {
        "event": "sinkhole_mode",
        "place": str(mode_file),
        "before": "defer-3x",
        "mode": "accept",
        "in_force_within_s": 0.0,
    }


@pytest.mark.parametrize(
    ("arguments", "environment", "exit_code", "reason"),
    [
        ((), {"MAIL_ENVIRONMENT": "production"}, 1, "MAIL_ENVIRONMENT=production"),
        (("--host", "0.0.0.0"), {}, 1, "--allow-remote"),
        (("--mode", "defr"), {}, 2, "a mode is one of"),
        (("--tls-cert", "x.pem"), {}, 2, "go together"),
        (("--implicit-tls",), {}, 2, "needs --tls-ca-file"),
        (("--username", "ann"), {}, 2, "go together"),
        (("--greylist-window", "soon"), {}, 2, "is not a duration"),
        (("--http", "here"), {}, 2, "must be host:port"),
        (("--http", "0.0.0.0:0"), {}, 1, "--http-token-file"),
        (("--http", "off", "--mode-redis", "redis://x", "--mode-ssm", "/x"), {}, 2, "give one"),
        (("--http-token-file", "/no/such"), {}, 1, "/no/such can't be read"),
        (("inbox", "--url", "http://127.0.0.1:1"), {}, 1, "no sinkhole answers at http://127.0.0.1:1"),
        (("show", "m1", "--url", "nowhere"), {}, 1, "no sinkhole answers at nowhere"),
        (("mode", "--url", "http://127.0.0.1:1"), {}, 1, "no sinkhole answers at http://127.0.0.1:1"),
        (("--tls-cert", "no.pem", "--tls-key", "no.pem"), {}, 1, "No such file"),
        (("--capture-file", "/no/such/folder"), {}, 1, "No such file"),
        (("--mode-redis", "redis"), {}, 1, "Redis can't be used"),
        (("mode", "defr"), {}, 2, "a mode is one of"),
        (("mode", "accept", "--mode-redis", "unix:///no/such"), {}, 1, "Redis can't be used"),
        (("mod",), {}, 2, "unexpected extra argument"),
    ],
)
def test_refusals(tmp_path, arguments, environment, exit_code, reason):
    """What can't be done ends with its exit code and one reason, and without a traceback."""
    result = call(*arguments, **{"MAIL_SINKHOLE_MODE_FILE": str(tmp_path / "mode"), **environment})
    assert result.exit_code == exit_code, result.output
    assert reason in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output


def test_a_damaged_mode_is_told_and_can_be_replaced(tmp_path):
    """A file without a mode fails to be shown and doesn't stop a new mode from being written."""
    mode_file = tmp_path / "mode"
    mode_file.write_text("defr")
    shown = call("mode", "--mode-file", mode_file)
    assert (shown.exit_code, "a mode is one of" in shown.stderr) == (1, True)
    assert call("mode", "accept", "--mode-file", mode_file).stdout.startswith("no mode -> accept")
    assert mode_file.read_text() == "accept\n"


def test_production_touches_nothing(tmp_path):
    """A refused sinkhole writes no mode and opens no file."""
    call(
        "--mode",
        "accept",
        "--capture-file",
        tmp_path / "c",
        "--mode-file",
        tmp_path / "m",
        MAIL_ENVIRONMENT="production",
    )
    assert list(tmp_path.iterdir()) == []
