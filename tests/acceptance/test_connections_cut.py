"""Connections to PostgreSQL are cut in mid-commit, reset and slow: nothing is lost or doubled, and callers hardly notice."""

from collections.abc import Iterator
from itertools import product

import pytest
from harness import QUICK, Database, Deployment, Load, mails, submit, submit_all, unanswered, until

from postgres_proxy import Moment, PostgresProxy

ACCEPT = "-- Accept a batch"
FINISH = "-- Record a batch of finished attempts"
CLAIM = "-- Claim due rows"
SUPPRESS = "-- Leave out of claimed deliveries"
BEAT = "-- Say that replica"
MARK = "-- at_most_once: commit the intent"
FEW_WORKERS = {"MAIL_ATTEMPT_WORKER_CONCURRENCY": "2"}
"""So that part of the mail waits in the table and is claimed from there."""
PATIENT = {**QUICK, "MAIL_REPLICA_TTL": "60s"}


@pytest.fixture
def proxy(database: Database) -> Iterator[PostgresProxy]:
    """Stand between the service and PostgreSQL; the test itself looks at PostgreSQL directly."""
    standing = PostgresProxy(database.dsn).start()
    yield standing
    standing.stop()


def test_an_answer_that_is_lost_is_asked_for(deployment: Deployment, proxy: PostgresProxy):
    """Each step of a mail's way is cut at each moment: every call is answered 2xx the first time, every mail goes once."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, MAIL_POSTGRES_DSN=proxy.dsn, **PATIENT, **FEW_WORKERS).start()
    statements = (ACCEPT, FINISH, CLAIM, SUPPRESS, BEAT)
    for statement, moment in product(statements, Moment):
        proxy.cut(statement, moment)
    submissions = mails(80, scripts=("", "", "", "defer-1x+"))
    submit(service, submissions)
    assert [submission.answers for submission in unanswered(submissions)] == []
    deployment.database.drain()
    until(lambda: proxy.cut_count == len(statements) * len(Moment), "each was cut")
    ledger = deployment.database.check(submissions, sink.copies)
    assert {
        attempt.certainty for delivery in ledger.deliveries.values() for attempt in delivery.attempts
    } == {
        "delivered",
        "not_delivered",
    }
    assert not any(answer.is_replayed for submission in submissions for answer in submission.answers)


def test_a_call_without_a_key_is_not_doubled(deployment: Deployment, proxy: PostgresProxy):
    """The commit is done, its answer lost: who gave no key can't repeat safely, and need not."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, MAIL_POSTGRES_DSN=proxy.dsn, **PATIENT).start()
    proxy.cut(ACCEPT, Moment.COMMITTED, times=3)
    (submission,) = mails(2)[1:]
    status, answer = service.call("POST", submission.path, submission.body)
    assert (status, proxy.cut_count) == (202, 3)
    deployment.database.drain()
    assert deployment.database.statuses() == {answer["delivery_id"]: "sent"}
    assert len(sink.copies) == 1


def test_no_dot_leaves_while_its_mark_is_in_doubt(deployment: Deployment, proxy: PostgresProxy):
    """At most once: whatever becomes of the commit before the dot, nothing is sent before it is known, and once only."""
    sink = deployment.told_sink()
    environ = {"MAIL_GUARANTEE_TRANSACTIONAL": "at_most_once", "MAIL_GUARANTEE_AUTH": "at_most_once"}
    service = deployment.service(sink.port, MAIL_POSTGRES_DSN=proxy.dsn, **PATIENT, **environ).start()
    for moment in Moment:
        proxy.cut(MARK, moment)
    submissions = mails(40)
    submit(service, submissions)
    deployment.database.drain()
    assert proxy.cut_count == len(Moment)
    ledger = deployment.database.check(submissions, sink.copies)
    assert len(ledger.copies) == len(submissions)


def test_resets_under_load_are_survived(deployment: Deployment, proxy: PostgresProxy):
    """Every connection reset five times in mid-stream: what callers still have to repeat they may, and nothing goes twice."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, MAIL_POSTGRES_DSN=proxy.dsn, **PATIENT).start()
    submissions = mails(240)
    load = Load([service.port], submissions)
    for step in range(1, 6):
        until(lambda least=step * 40: load.taken_count >= least, "the load goes on")
        proxy.reset()
    load.wait()
    submit_all(service, submissions)
    deployment.database.drain()
    ledger = deployment.database.check(submissions, sink.copies)
    assert len(ledger.copies) == len(submissions)


def test_a_slow_network_costs_time_and_nothing_else(deployment: Deployment, proxy: PostgresProxy):
    """300 ms for each round trip: claims stay their holder's, nobody is declared lost, nothing is refused or doubled."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, MAIL_POSTGRES_DSN=proxy.dsn, **QUICK).start()
    proxy.latency_s = 0.15
    submissions = mails(24, scripts=("", "", "", "defer-1x+"))
    submit(service, submissions)
    assert list(unanswered(submissions)) == []
    deployment.database.drain()
    ledger = deployment.database.check(submissions, sink.copies)
    assert len(ledger.copies) == len(submissions)
    assert service.logged("replica was declared lost and starts anew") == []
