"""Killed at any named point, from the first byte of a submission to the last commit: nothing is lost, nothing doubled."""

import json
import signal
import time
from collections.abc import Callable
from typing import Final

import msgspec
import pytest
import redis
from harness import QUICK, Database, mails, rendered, submit, submit_all, until
from ledger import Answer

from mailkeep.core.delivery import BIRTH
from mailkeep.core.ids import new_id
from mailkeep.faults import FaultPoint
from mailkeep.store.migrate import migrations

COUNT: Final = 60
FEW_WORKERS: Final = {"MAIL_ATTEMPT_WORKER_CONCURRENCY": "4"}
"""So that part of the mail waits in the table and is claimed from there."""


class Scene(msgspec.Struct, frozen=True):
    """What is found after the crash. Commits are counted by kind."""

    hits: int
    answers: int
    births: int
    claims: int
    finishes: int
    attempts: int
    arrived: int


WHERE: Final[dict[FaultPoint, tuple[int, Callable[[Scene], bool]]]] = {
    # Counted in commits, each of several mails; login codes have commits of their own, one of which may be under way beside.
    FaultPoint.ACCEPT_BEFORE_COMMIT: (4, lambda scene: scene.births in (scene.hits - 2, scene.hits - 1)),
    FaultPoint.ACCEPT_AFTER_COMMIT: (4, lambda scene: scene.births in (scene.hits, scene.hits + 1)),
    FaultPoint.HANDED_OVER: (4, lambda scene: scene.births in (scene.hits, scene.hits + 1)),
    FaultPoint.CLAIM_AFTER_COMMIT: (3, lambda scene: scene.claims == scene.hits),
    FaultPoint.FINISH_BEFORE_COMMIT: (4, lambda scene: scene.finishes == scene.hits - 1),
    FaultPoint.FINISH_AFTER_COMMIT: (4, lambda scene: scene.finishes == scene.hits),
    # Counted in mails.
    FaultPoint.ACCEPT_AFTER_ANSWER: (20, lambda scene: scene.answers >= scene.hits),
    FaultPoint.ATTEMPT_BEGINS: (20, lambda scene: scene.attempts < scene.hits and scene.arrived < scene.hits),
    FaultPoint.TRANSACTION_BEGINS: (
        20,
        lambda scene: scene.attempts < scene.hits and scene.arrived < scene.hits,
    ),
    FaultPoint.BEFORE_DOT: (20, lambda scene: scene.arrived < scene.hits),
    FaultPoint.AFTER_DOT: (20, lambda scene: scene.arrived >= scene.hits),
    FaultPoint.OUTCOME_KNOWN: (20, lambda scene: scene.attempts < scene.hits),
}
"""Where the process dies: at which hit, and what proves that it died there and not elsewhere."""


@pytest.mark.parametrize("point", WHERE, ids=list(WHERE))
def test_a_crash_loses_nothing(deployment, point):
    """The process dies at the point in mid-stream; after a restart everything is delivered, every copy explained."""
    hits, is_there = WHERE[point]
    sink = deployment.told_sink()
    service = deployment.service(sink.port, **QUICK, **FEW_WORKERS)
    service.start(MAIL_FAULT_POINT=f"{point}:{hits}")
    submissions = mails(COUNT, scripts=("", "", "", "defer-1x+", "defer-1x+"))
    submit(service, submissions)
    assert service.wait() == -signal.SIGKILL
    answered = sum(bool(submission.ids) for submission in submissions)
    until(
        lambda: is_there(scene(deployment.database, hits, answered, len(sink.copies))), f"it is at {point}", 5
    )
    service.start()
    submit_all(service, submissions)
    submit(service, submissions)
    deployment.database.drain()
    deployment.database.check(submissions, sink.copies)


def scene(database: Database, hits: int, answers: int, arrived: int) -> Scene:
    """Look at what a crash left."""
    return Scene(
        hits,
        answers,
        births=database.commit_count(None, [*BIRTH]),
        claims=database.commit_count("rendered", ["sending"]),
        finishes=database.commit_count("sending", ["sent", "rendered"]),
        attempts=database.value("SELECT count(*) FROM mail.attempts"),
        arrived=arrived,
    )


def test_a_crash_before_the_stream_is_acknowledged(deployment, redis_server):
    """Entries that were committed and not acknowledged come again, are known, and leave nothing pending."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, MAIL_REDIS_MASTER_ADDR=str(redis_server.socket), **QUICK)
    with redis.Redis(unix_socket_path=str(redis_server.socket)) as client:
        submissions = [add_to_stream(client, number) for number in range(COUNT // 2)]
        service.start(MAIL_FAULT_POINT=f"{FaultPoint.STREAM_BEFORE_ACK}:2")
        submissions += [add_to_stream(client, number) for number in range(COUNT // 2, COUNT)]
        assert service.wait() == -signal.SIGKILL
        assert client.xpending(STREAM, GROUP)["pending"] > 0
        service.start()
        wait_for_all(deployment.database, submissions)
        until(lambda: client.xpending(STREAM, GROUP)["pending"] == 0, "every entry is acknowledged")
    deployment.database.drain()
    deployment.database.check(submissions, sink.copies)
    assert deployment.database.value("SELECT count(*) FROM mail.malformed_commands") == 0


STREAM: Final = "mail:delivery_commands"
GROUP: Final = "mailkeep"


def add_to_stream(client, number):
    """Add one command; what Redis answers is the promise, and the id is the producer's own."""
    submission = rendered([f"stream-{number}-{new_id(time.time())}@sinkhole.test"])
    delivery_id = str(new_id(time.time()))
    client.xadd(
        STREAM,
        {
            "delivery_id": delivery_id,
            "source": "notification",
            "payload_mode": "rendered",
            "idempotency_key": submission.key,
            "requested_at_ms": str(int(time.time() * 1000)),
            "payload_json": json.dumps(submission.body["payload"]),
        },
    )
    submission.answers.append(Answer(202, delivery_id))
    return submission


def test_a_crash_before_the_inbox_row_is_dropped(deployment):
    """Commands of `mail.enqueue` that were taken and not dropped come again, are known, and the inbox ends empty."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, **QUICK)
    service.start(MAIL_FAULT_POINT=f"{FaultPoint.ENQUEUED_BEFORE_DROP}:2")
    submissions = [enqueue(deployment.database, number) for number in range(COUNT)]
    assert service.wait() == -signal.SIGKILL
    assert deployment.database.value("SELECT count(*) FROM mail.enqueued") > 0
    service.start()
    wait_for_all(deployment.database, submissions)
    until(lambda: not deployment.database.fetch("SELECT FROM mail.enqueued"), "the inbox is empty")
    deployment.database.drain()
    deployment.database.check(submissions, sink.copies)
    assert deployment.database.value("SELECT count(*) FROM mail.malformed_commands") == 0


def enqueue(database, number):
    """Hand one command over in SQL; the id that the committed statement answered is the promise."""
    submission = rendered([f"sql-{number}-{new_id(time.time())}@sinkhole.test"])
    command = {**submission.body, "idempotency_key": submission.key}
    delivery_id = database.value("SELECT mail.enqueue($1::text::jsonb)", json.dumps(command))
    submission.answers.append(Answer(202, str(delivery_id)))
    return submission


def wait_for_all(database, submissions):
    """Wait until every command has become a delivery."""
    until(lambda: len(database.statuses()) >= len(submissions), "every command is taken")


def test_a_crash_in_a_migration(deployment, postgres):
    """Killed within the last migration nothing of the schema is there; the next start makes it whole."""
    deployment.database = database = postgres.database()
    sink = deployment.told_sink()
    service = deployment.service(sink.port, **QUICK)
    service.spawn(MAIL_FAULT_POINT=f"{FaultPoint.MIGRATION}:{len(migrations())}")
    assert service.wait() == -signal.SIGKILL
    assert database.value("SELECT to_regnamespace('mail')") is None
    service.start()
    database.watch()
    submissions = mails(4)
    submit_all(service, submissions)
    database.drain()
    database.check(submissions, sink.copies)


def test_no_point_is_forgotten():
    """Every point that the code declares has its crash in this file."""
    others = {FaultPoint.STREAM_BEFORE_ACK, FaultPoint.ENQUEUED_BEFORE_DROP, FaultPoint.MIGRATION}
    assert WHERE.keys() | others == set(FaultPoint)
