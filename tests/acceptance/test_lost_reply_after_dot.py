"""The reply to the final dot is lost: at_least_once sends again and says so, at_most_once stops and waits for a person."""

import signal

import pytest
from harness import QUICK, mails, rendered, submit, submit_all, until

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.drill.ledger import SENT, Attempt, copies_of
from mailkeep.faults import FaultPoint

HELD = frozenset({DeliveryStatus.HELD})
NOT_BY_ITSELF = {"MAIL_RETRY_LADDER_TRANSACTIONAL": "1h", "MAIL_RETRY_LADDER_AUTH": "10m"}
AT_MOST_ONCE = {"MAIL_GUARANTEE_TRANSACTIONAL": "at_most_once"}


def attempts_recorded(database, count):
    """Whether so many attempts are recorded."""
    return database.value("SELECT count(*) FROM mail.attempts") >= count


def test_at_least_once_sends_a_second_copy_and_records_why(deployment):
    """One copy more than recipients asked for, each beside an attempt whose outcome is `unknown`."""
    sink = deployment.sink("accept-then-drop")
    sink.ready()
    service = deployment.service(sink.port, **NOT_BY_ITSELF).start()
    submissions = mails(4)
    submit_all(service, submissions)
    until(lambda: attempts_recorded(deployment.database, 4), "every first attempt is recorded")
    assert len(sink.copies) == 4
    sink.mode("accept")
    assert service.flush() == 4
    deployment.database.drain()
    ledger = deployment.database.check(submissions, sink.copies)
    for delivery in ledger.deliveries.values():
        assert delivery.attempts == (
            Attempt(1, "transport_failed", "unknown"),
            Attempt(2, "provider_accepted", "delivered"),
        )
        assert set(copies_of(ledger)[delivery.id].values()) == {2}


def test_at_most_once_holds_instead(deployment):
    """Exactly one copy; the delivery is `held`, and neither a flush nor a restart sends it again."""
    sink = deployment.sink("accept-then-drop")
    sink.ready()
    service = deployment.service(sink.port, **NOT_BY_ITSELF, **AT_MOST_ONCE).start()
    submissions = [rendered(["ann@sinkhole.test", "bob@sinkhole.test"])]
    submit_all(service, submissions)
    until(lambda: set(deployment.database.statuses().values()) == HELD, "it is held")
    sink.mode("accept")
    assert service.flush() == 0
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    service.start()
    assert service.flush() == 0
    later = [rendered(["carol@sinkhole.test"])]
    submit_all(service, later)
    deployment.database.drain()
    ledger = deployment.database.check([*submissions, *later], sink.copies, SENT | HELD)
    (held,) = [delivery for delivery in ledger.deliveries.values() if delivery.status == "held"]
    assert held.attempts == (Attempt(1, "transport_failed", "unknown"),)
    assert copies_of(ledger)[held.id] == {"ann@sinkhole.test": 1, "bob@sinkhole.test": 1}


@pytest.mark.parametrize(
    ("point", "status", "copy_count"),
    [
        (FaultPoint.TRANSACTION_BEGINS, "sent", 1),
        (FaultPoint.BEFORE_DOT, "held", 0),
        (FaultPoint.AFTER_DOT, "held", 1),
        (FaultPoint.FINISH_BEFORE_COMMIT, "held", 1),
    ],
)
def test_at_most_once_survives_a_crash(deployment, point, status, copy_count):
    """Once the intent to send the dot is committed, a replica that died there leaves a `held` delivery, never a second dot."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, **QUICK, **AT_MOST_ONCE)
    service.start(MAIL_FAULT_POINT=f"{point}:1")
    submissions = [rendered(["ann@sinkhole.test"])]
    submit(service, submissions)
    assert service.wait() == -signal.SIGKILL
    service.start()
    submit_all(service, submissions)
    deployment.database.drain()
    ledger = deployment.database.check(submissions, sink.copies, frozenset({DeliveryStatus(status)}))
    assert len(ledger.copies) == copy_count
