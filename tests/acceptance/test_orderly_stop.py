"""SIGTERM under load: the process ends in time and in order, nothing is sent twice, the next start delivers the rest."""

import signal
import time

import pytest
from harness import Load, mails, rendered, submit_all, until

from mailkeep.drill.ledger import copies_of

STOP_LINES = (
    "internal http listener stopped",
    "attempt scheduler stopped",
    "attempt worker pool stopped",
    "replica heartbeat stopped",
    "service stopped",
)
"""In this order (contract section 8); the others that stop have no place in it."""
WITHIN_S = 10.0


def stop(service):
    """Send SIGTERM; check that the process ends in time, with 0 and the lines of an orderly stop."""
    began_s = time.monotonic()
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert time.monotonic() - began_s <= WITHIN_S
    events = [line["event"] for line in service.lines]
    assert [event for event in events if event in STOP_LINES] == list(STOP_LINES)
    assert {"retention worker stopped", "enqueued consumer stopped"} <= set(events)
    (pool,) = service.logged("attempt worker pool stopped")
    assert pool["left"] == 0


def test_a_stop_under_load_doubles_nothing(deployment):
    """In-flight attempts end by themselves, the rest waits for the next start: one copy each, no outcome unknown."""
    sink = deployment.sink("slow@dot")
    sink.ready()
    service = deployment.service(sink.port, MAIL_SHUTDOWN_TIMEOUT=f"{WITHIN_S:g}s").start()
    submissions = mails(400)
    load = Load([service.port], submissions, 20)
    until(lambda: load.taken_count >= 150, "the load is in full swing")
    stop(service)
    load.wait()
    left = [status for status in deployment.database.statuses().values() if status != "sent"]
    assert left, "it stopped after the last attempt instead of among them"
    assert set(left) == {"rendered"}
    sink.mode("accept")
    service.start()
    submit_all(service, submissions)
    deployment.database.drain()
    ledger = deployment.database.check(submissions, sink.copies)
    attempts = [attempt for delivery in ledger.deliveries.values() for attempt in delivery.attempts]
    assert {attempt.certainty for attempt in attempts} == {"delivered"}
    assert all(set(counts.values()) == {1} for counts in copies_of(ledger).values())


@pytest.mark.parametrize(("stalls_at", "certainties"), [("rcpt", []), ("dot", ["unknown"])])
def test_a_stalled_attempt_is_cut(deployment, stalls_at, certainties):
    """An attempt that would never end is handed back untouched before its dot, and recorded as unknown after it."""
    stalled = []
    sink = deployment.told_sink(f"stall@{stalls_at}", on_exchange=stalled.append)
    service = deployment.service(sink.port, MAIL_SHUTDOWN_TIMEOUT="5s").start()
    submissions = [rendered([f"ann-{number}@sinkhole.test"]) for number in range(4)]
    submit_all(service, submissions)
    until(lambda: len(stalled) == 4, f"every attempt stalls at {stalls_at}")
    stop(service)
    found = deployment.database.fetch("SELECT certainty FROM mail.attempts")
    assert [row["certainty"] for row in found] == certainties * 4
    sink.mode("accept")
    service.start()
    assert service.flush() == len(found)
    deployment.database.drain()
    ledger = deployment.database.check(submissions, sink.copies)
    assert len(ledger.copies) == 4


def test_a_claim_that_no_attempt_holds_is_given_back(deployment):
    """What was claimed as the stop came, and reached no worker, waits at once: no attempt is counted, nothing is unknown."""
    sink = deployment.sink("defer")
    sink.ready()
    service = deployment.service(sink.port, MAIL_RETRY_LADDER_TRANSACTIONAL="1h").start()
    submissions = [rendered(["ann@sinkhole.test"])]
    submit_all(service, submissions)
    waiting = "SELECT count(*) FROM mail.deliveries WHERE status = 'rendered' AND attempts = 1"
    until(lambda: deployment.database.value(waiting), "it is deferred")
    replica_id = service.logged("replica heartbeat started")[0]["replica_id"]
    deployment.database.fetch(
        "UPDATE mail.deliveries SET status = 'sending', claimed_by = $1::text::uuid, claimed_at = now(),"
        " claim_token = claim_token + 1, due_at = NULL",
        replica_id,
    )
    stop(service)
    assert set(deployment.database.statuses().values()) == {"rendered"}
    sink.mode("accept")
    service.start()
    deployment.database.drain()
    ledger = deployment.database.check(submissions, sink.copies)
    attempts = [attempt for delivery in ledger.deliveries.values() for attempt in delivery.attempts]
    assert [attempt.certainty for attempt in attempts] == ["not_delivered", "delivered"]
