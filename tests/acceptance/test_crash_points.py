"""Killed under load at any named point, from the first byte of a submission to the last commit: nothing is lost, nothing doubled.

Many mails are under way, and most commits hold several; each step of a single one is the crash matrix's.
"""

import json
import signal
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import msgspec
import pytest
from harness import DELIVERIES, QUICK, Database, mails, rendered, submit, submit_all, until

from mailkeep.core.delivery import BIRTH
from mailkeep.core.ids import new_id
from mailkeep.faults import FaultPoint

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
    # The last are claimed thrice one after the other, however many a claim takes: as often as the highest count of claims needs.
    submissions = mails(COUNT, scripts=("", "", "", "defer-1x+", "defer-3x+"))
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


def test_a_crash_between_a_bounce_and_what_was_owed(deployment):
    """The bounces are stored and still owed: another life finds them, and each sender gets exactly one."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, **QUICK)
    service.start(MAIL_FAULT_POINT=f"{FaultPoint.BOUNCE_BEFORE_SETTLED}:1")
    for number in range(COUNT // 6):
        submission = rendered([f"bounce+{number}-{new_id(time.time())}@sinkhole.test"])
        assert service.call("POST", DELIVERIES, {**submission.body, "class": "relay"})[0] == 202
    assert service.wait() == -signal.SIGKILL
    database = deployment.database
    assert database.value("SELECT count(*) FROM mail.bounces_owed") > 0
    assert database.value("SELECT count(*) FROM mail.deliveries WHERE source = 'bounce'") > 0
    service.start()
    until(lambda: not database.fetch("SELECT FROM mail.bounces_owed"), "nothing is owed any more")
    database.drain()
    found = database.fetch("SELECT count(*) FROM mail.deliveries WHERE source = 'bounce' GROUP BY parent_id")
    assert [row["count"] for row in found] == [1] * (COUNT // 6)


@pytest.fixture
def hook(tmp_path):
    """Run a receiver of webhooks in a thread; yields the ids that it was told, in order, and the file that names it."""
    told = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            event = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told.append((self.headers["webhook-id"], event["data"]["delivery_id"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    path = tmp_path / "webhooks.toml"
    path.write_text(
        f'[webhook.shop]\nurl = "http://127.0.0.1:{server.server_port}/"\nallow_private = true\n'
        'secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]\n'
    )
    yield told, path
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_crash_before_a_webhook_is_recorded(deployment, hook):
    """What was told and not recorded is told again under the same ids; every delivery that ended is told, none is lost."""
    told, path = hook
    sink = deployment.told_sink()
    service = deployment.service(sink.port, MAIL_WEBHOOKS_FILE=str(path), **QUICK)
    service.start(MAIL_FAULT_POINT=f"{FaultPoint.WEBHOOK_BEFORE_COMMIT}:2")
    until(lambda: deployment.database.fetch("SELECT FROM mail.webhooks"), "the webhook is known")
    submissions = mails(COUNT)
    submit(service, submissions[: COUNT // 2])
    until(lambda: told or not service.is_alive, "an event is told")
    submit(service, submissions[COUNT // 2 :])
    assert service.wait() == -signal.SIGKILL
    before = list(told)
    service.start()
    submit_all(service, submissions)
    deployment.database.drain()
    ended = set(deployment.database.statuses())
    until(
        lambda: deployment.database.value("SELECT told FROM mail.webhooks") == len(ended),
        "every end is told and recorded",
    )
    assert {delivery_id for _, delivery_id in told} == ended
    assert set(before) & set(told[len(before) :]), "nothing came again"
    assert len(set(told)) == len(ended)
    deployment.database.check(submissions, sink.copies)


def test_no_point_is_forgotten():
    """Every point that the code declares has its crash in this file."""
    assert WHERE.keys() | {FaultPoint.BOUNCE_BEFORE_SETTLED, FaultPoint.WEBHOOK_BEFORE_COMMIT} == set(
        FaultPoint
    )
