"""Canaries: a marked code, address, subject, body and passwords, looked for in all that a deployment says and keeps.

Looked into: every line of every process (JSON and console, debug), OTLP spans and metrics, what commands print, the
arguments of processes, and a full dump of the database once the deliveries have ended, there also in hexadecimal and base64.
"""

import json
import signal
import sys

import psutil
import pytest
from harness import (
    API,
    SENDER,
    Service,
    free_port,
    login_code,
    own_environment,
    rendered,
    submit_all,
    until,
)
from test_telemetry import Receiver, exporting

from dumps import dump_of_all, dump_of_tables, found_in
from mailkeep.drill.producer import template
from mailkeep.store.sealing import new_key
from nursery import ran

CODE = "73190264"
AUTH = "canary-auth"
MAIL = "canary-mail"
BOUNCED = "canary-bounced"
TEXT = "canary-subject"
BODY = "canary-body"
PASSWORDS = ("canary-dsn-password", "canary-smtp-password", "canary-otlp-password")
ALL = (CODE, AUTH, MAIL, BOUNCED, TEXT, BODY, *PASSWORDS)


@pytest.fixture
def receiver():
    """Run a receiver."""
    receiving = Receiver()
    yield receiving
    receiving.stop()


def found(haystack, canaries=ALL):
    """Return which canaries are in `haystack`."""
    return found_in(haystack, canaries)


def dump(database):
    """Return a full dump of the database."""
    return dump_of_all(database.dsn)


def dump_of(database, *tables):
    """Return the dump of these tables and their partitions alone."""
    return dump_of_tables(database.dsn, *tables)


def cli(service, *arguments):
    """Run a command in the environment of a service and return all it says."""
    done = ran(arguments, own_environment(**service.environ))
    return done.output + done.errors


def marked_mails():
    """Login codes that are sent, bounced and superseded, and mail that is sent, bounced and rendered from a template."""
    text = {"subject": TEXT, "text": BODY}
    plain, bounced = rendered([f"{MAIL}@sinkhole.test"]), rendered([f"bounce+{BOUNCED}@sinkhole.test"])
    for mail in (plain, bounced):
        mail.body["payload"] |= text
    return [
        login_code(f"{AUTH}-1@sinkhole.test", code=CODE),
        login_code(f"bounce+{AUTH}-2@sinkhole.test", code=CODE),
        login_code(f"{AUTH}-3@sinkhole.test", code=CODE),
        login_code(f"{AUTH}-3@sinkhole.test", code=CODE),
        plain,
        bounced,
        template([f"{MAIL}-2@sinkhole.test"]),
    ]


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.long
def test_no_canary_is_said_or_kept(deployment, receiver, tmp_path, log_format):
    """With sealed payloads nothing marked is in any output, nor in the dump but on the suppression list; erased, nowhere."""
    keys = tmp_path / "keys"
    keys.write_text(new_key("k1"))
    sink = deployment.sink("accept")
    sink.ready()
    port = free_port()
    environ = {
        "MAIL_POSTGRES_DSN": deployment.database.dsn.replace("@", f":{PASSWORDS[0]}@", 1),
        "MAIL_PAYLOAD_KEYS_FILE": str(keys),
        "MAIL_SMTP_ADDR": f"127.0.0.1:{free_port()}",
        "MAIL_SMTP_USERNAME": "mailkeep",
        "MAIL_SMTP_PASSWORD": PASSWORDS[1],
        "MAIL_SMTP_TLS": "starttls",
        "MAIL_LOG_LEVEL": "debug",
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-key={PASSWORDS[2]}",
        **exporting(receiver),
    }
    service = fixed(deployment.service(sink.port, **environ, MAIL_LOG_FORMAT=log_format)).start()
    said = [speak(service, deployment, sink)]
    ids = list(deployment.database.statuses())
    commands = [
        ("queue",),
        ("queue", "--json"),
        ("dead-letters", "--json"),
        ("replicas", "--json"),
        ("malformed", "list", "--json"),
        ("config",),
        ("payloads", "keys"),
        *(("explain", delivery_id) for delivery_id in ids[:8]),
        *(("queue", "show", delivery_id) for delivery_id in ids[:8]),
    ]
    printed = b"".join(cli(service, *command) for command in commands)
    assert b"sent" in printed
    argued = " ".join(psutil.Process(service.pid).cmdline()).encode()
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    said.append(service.output.encode())
    wrong = deployment.service(
        sink.port,
        name="wrong",
        **environ
        | {
            "MAIL_LOG_FORMAT": log_format,
            "MAIL_POSTGRES_DSN": f"postgresql://mailkeep:{PASSWORDS[0]}@127.0.0.1:{port}/mail",
        },
    )
    wrong.spawn()
    assert wrong.wait() == 69
    broken = deployment.service(
        sink.port, name="broken", **environ | {"MAIL_SMTP_TLS": "none", "MAIL_SMTP_ADDR": "192.0.2.1:25"}
    )
    broken.spawn()
    assert broken.wait() == 78
    said += [wrong.output.encode(), broken.output.encode()]
    for where, text in (
        ("lines", b"".join(said)),
        ("telemetry", receiver.raw),
        ("commands", printed),
        ("argv", argued),
    ):
        assert len(text) > 10
        assert found(text) == set(), where
    whole = dump(deployment.database)
    assert SENDER.encode() not in whole
    assert b"COPY mail.deliveries_p" in whole
    assert found(whole) == {BOUNCED, AUTH}
    assert found(whole, [CODE, TEXT, BODY, MAIL, *PASSWORDS]) == set()
    for address in (f"bounce+{BOUNCED}@sinkhole.test", f"bounce+{AUTH}-2@sinkhole.test"):
        assert address.encode() in dump_of(deployment.database, "suppressions")
        assert b"erased" in cli(service, "erase", "--recipient", address, "--why", "a test")
    left = dump(deployment.database)
    assert found(left) == set()
    sys.stdout.write(
        f"canaries: {len(ALL)} marks; {sum(map(len, said))} bytes of lines, {len(receiver.raw)} of telemetry, "
        f"{len(printed)} printed, {len(whole)} dumped: 0 found but 2 suppressed addresses; 0 after their erasure"
    )


class Fixed(Service):
    """A service whose port is known without its lines, which may be for people; its arguments are its own."""

    by_command = True

    @property
    def port(self):
        return int(self.environ["MAIL_INTERNAL_HTTP_ADDR"].rpartition(":")[2])


def fixed(service):
    """Give a service a port of its own."""
    service.environ["MAIL_INTERNAL_HTTP_ADDR"] = f"127.0.0.1:{free_port()}"
    service.__class__ = Fixed
    return service


def speak(service, deployment, sink):
    """Send the marked mail through success, refusal, deferral, cuts and faults until all of it has ended; return what callers saw."""
    submit_all(service, marked_mails())
    status, _ = service.call("POST", f"{API}/login-code-deliveries", {"email": f"{AUTH}@@", "code": [CODE]})
    assert status in {400, 422}
    status, _ = service.call("POST", f"{API}/deliveries", {"payload": {"to": f"{MAIL}@", TEXT: BODY}})
    assert status in {400, 422}
    service.call("GET", f"{API}/deliveries?recipient={MAIL}@sinkhole.test")
    service.call("GET", f"{API}/{MAIL}")
    deployment.database.drain()
    for mode in ("defer", "accept-then-drop", "drop@rcpt"):
        sink.mode(mode)
        submit_all(service, [rendered([f"{MAIL}-{mode.partition('@')[0]}@sinkhole.test"])])
        until(lambda: "rendered" in deployment.database.statuses().values(), "an attempt failed")
        deployment.database.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mailkeep'"
        )
        sink.mode("accept")
        until(lambda: service.call("POST", f"{API}/queue/flush", {"all": True})[0] == 200, "a flush")
        deployment.database.drain()
    out = rendered([f"{MAIL}-out@somewhere.example.org"])
    submit_all(service, [out])
    until(lambda: "rendered" in deployment.database.statuses().values(), "the hop that is out is noticed")
    (waiting,) = [name for name, status in deployment.database.statuses().items() if status == "rendered"]
    why = {"reason": "a test"}
    until(
        lambda: service.call("POST", f"{API}/deliveries/{waiting}/cancel", why)[0] == 200, "it is cancelled"
    )
    deployment.database.drain()
    return json.dumps(deployment.database.statuses()).encode()


def test_without_keys_only_ended_mail_that_is_no_login_code_keeps_content(deployment):
    """Of login codes nothing at all is at rest after the end; of other mail payloads alone, until their retention."""
    sink = deployment.sink("accept")
    sink.ready()
    service = deployment.service(sink.port).start()
    submit_all(service, [mail for mail in marked_mails() if "bounce" not in str(mail.recipients)])
    deployment.database.drain()
    whole = dump(deployment.database)
    assert found(whole) == {MAIL, TEXT, BODY}
    kept = dump_of(
        deployment.database,
        *(
            "deliveries",
            "recipients",
            "attempts",
            "dead_letters",
            "idempotency_keys",
            "operator_changes",
            "replicas",
        ),
    )
    assert found(kept) == set()
    assert found(dump_of(deployment.database, "payloads")) == {MAIL, TEXT, BODY}


def test_no_core_is_dumped(deployment):
    """A core file would hold mail and passwords: none is written, whatever the limit was before."""
    sink = deployment.sink("accept")
    sink.ready()
    service = deployment.service(sink.port).start()
    if not hasattr(psutil.Process, "rlimit"):
        pytest.skip("psutil knows limits on Linux only")
    assert psutil.Process(service.pid).rlimit(psutil.RLIMIT_CORE) == (0, 0)
