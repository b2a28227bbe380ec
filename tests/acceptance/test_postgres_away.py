"""PostgreSQL is away: a start says so in one line, a running service refuses with 503, waits, resumes and loses nothing."""

import signal
import time

import pytest
from harness import (
    TEMPLATE,
    Cluster,
    Database,
    Deployment,
    Load,
    mails,
    rendered,
    submit_all,
    unanswered,
    until,
)

PATIENT = {"MAIL_REPLICA_HEARTBEAT": "500ms", "MAIL_REPLICA_TTL": "60s"}
"""An outage of seconds costs no replica its claims."""
HASTY = {"MAIL_REPLICA_HEARTBEAT": "200ms", "MAIL_REPLICA_TTL": "1s", "MAIL_SHUTDOWN_TIMEOUT": "5s"}


@pytest.fixture
def database(own_postgres: Cluster) -> Database:
    """Make a database in a PostgreSQL of these tests' own."""
    return own_postgres.database(TEMPLATE)


def test_a_start_without_postgresql_ends_with_one_line(deployment: Deployment):
    """Exit code 69 and a single line that says what can't be reached, without the password."""
    service = deployment.service(1, MAIL_POSTGRES_DSN="postgresql://mail:secret@127.0.0.1:1/mail")
    service.spawn()
    assert service.wait() == 69
    (line,) = service.lines
    assert line["event"] == "can't start"
    assert "127.0.0.1:1" in line["error"]
    assert "secret" not in service.output


def test_a_crash_of_postgresql_is_survived(deployment: Deployment, own_postgres: Cluster):
    """Killed in mid-stream: 503 with Retry-After meanwhile; attempts that ended are recorded later, nothing goes twice."""
    arrived = []

    def on_message() -> None:
        arrived.append(None)
        if len(arrived) == 30:
            own_postgres.kill9()  # the message is taken; its reply is read when nothing can be recorded

    sink = deployment.told_sink(on_message=on_message)
    service = deployment.service(sink.port, **PATIENT).start()
    submissions = mails(200)
    Load([service.port], submissions).wait()
    until(
        lambda: service.logged("attempts wait for PostgreSQL to be recorded"),
        "an attempt waits to be recorded",
    )
    refused = [submission.answers[-1] for submission in unanswered(submissions)]
    assert refused
    assert {answer and answer.status for answer in refused} == {503}
    assert all(answer and answer.retry_after for answer in refused)
    own_postgres.start()
    submit_all(service, submissions)
    deployment.database.drain()
    ledger = deployment.database.check(submissions, sink.copies)
    attempts = [attempt for delivery in ledger.deliveries.values() for attempt in delivery.attempts]
    assert {attempt.certainty for attempt in attempts} == {"delivered"}
    assert len(ledger.copies) == len(submissions)


def test_a_hang_of_postgresql_is_survived(deployment: Deployment, own_postgres: Cluster):
    """Frozen for longer than the replica's TTL, without an error on any connection: the service beats and sends again."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, **HASTY).start()
    before, after = mails(8), mails(8)
    submit_all(service, before)
    own_postgres.signal(signal.SIGSTOP)
    try:
        time.sleep(4)  # the hang itself: several TTLs; nothing tells when it has lasted long enough
    finally:
        own_postgres.signal(signal.SIGCONT)
    submit_all(service, after)
    deployment.database.drain()
    deployment.database.check([*before, *after], sink.copies)


def test_a_stop_while_postgresql_hangs_is_bounded(deployment: Deployment, own_postgres: Cluster):
    """SIGTERM while a submission waits for a commit that does not come: the process ends in time all the same."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, **HASTY).start()
    submissions = [rendered(["ann@sinkhole.test"])]
    own_postgres.signal(signal.SIGSTOP)
    try:
        load = Load([service.port], submissions, 1)
        time.sleep(0.5)  # the request is on its way; a frozen server can't be asked whether it came
        service.signal(signal.SIGTERM)
        began_s = time.monotonic()
        assert service.wait(within_s=60) == 0
        took_s = time.monotonic() - began_s
    finally:
        own_postgres.signal(signal.SIGCONT)
    load.wait()
    assert took_s <= 20  # of the 60 s that PostgreSQL would be waited for
    service.start()
    submit_all(service, submissions)
    deployment.database.drain()
    deployment.database.check(submissions, sink.copies)
