"""A replica that stood still past its TTL finds its mail taken over: it changes no row and sends no dot."""

import os
import signal

import pytest
from harness import QUICK, rendered, submit_all, until

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.drill.ledger import SENT

AT_MOST_ONCE = {"MAIL_GUARANTEE_TRANSACTIONAL": "at_most_once"}
MOVES = "SELECT count(*) FROM witness.moves WHERE by = 'frozen'"
CLAIM_LOST = "claim was lost before its attempt was recorded"
LOOKS_TO_RCPT = 3  # at the connection, at MAIL, at RCPT


class Freezer:
    """Stops one process, once, at the moment it is asked to."""

    def __init__(self):
        self.pid = None
        self.is_done = False

    def freeze(self):
        """Stop the process, if it is named and was not stopped before."""
        if self.pid is not None and not self.is_done:
            self.is_done = True
            os.kill(self.pid, signal.SIGSTOP)


@pytest.fixture
def freezer():
    """Make a freezer that never leaves its process frozen."""
    made = Freezer()
    yield made
    if made.is_done:
        os.kill(made.pid, signal.SIGCONT)


def replicas(deployment, sink, **environ):
    """Start the replica that will be frozen, under a login of its own, and the one that will take over."""
    dsn = deployment.database.as_role("frozen")
    frozen = deployment.service(sink.port, name="frozen", **QUICK, **environ, MAIL_POSTGRES_DSN=dsn)
    other = deployment.service(sink.port, name="other", **QUICK, **environ)
    frozen.spawn()
    other.spawn()
    return frozen.ready(), other.ready()


def thaw(service):
    """Let the frozen replica go on, and wait until it noticed that it was declared lost."""
    service.signal(signal.SIGCONT)
    until(lambda: service.logged("replica was declared lost and starts anew"), "it notices")


def test_frozen_before_the_dot(deployment, freezer):
    """Its 354 lies in its socket when it awakes: the body stays unsent, the one copy is the other replica's."""
    looks = []

    def on_look():
        looks.append(None)
        if len(looks) == LOOKS_TO_RCPT:
            freezer.freeze()

    sink = deployment.told_sink(on_look=on_look)
    frozen, _ = replicas(deployment, sink)
    freezer.pid = frozen.pid
    submissions = [rendered(["ann@sinkhole.test"])]
    submit_all(frozen, submissions)
    deployment.database.drain()
    moves = deployment.database.value(MOVES)
    connections = sink.connection_count
    thaw(frozen)
    until(lambda: sink.connection_count < connections, "it gives its dialog up")
    assert deployment.database.value(MOVES) == moves == 1
    ledger = deployment.database.check(submissions, sink.copies)
    assert len(ledger.copies) == 1


@pytest.mark.parametrize(
    ("environ", "status", "copy_count"), [({}, "sent", 2), (AT_MOST_ONCE, "held", 1)], ids=["least", "most"]
)
def test_frozen_after_the_dot(deployment, freezer, environ, status, copy_count):
    """The reply lies in its socket when it awakes: its success is not recorded, since the delivery went on without it."""
    sink = deployment.told_sink(on_message=freezer.freeze)
    frozen, other = replicas(deployment, sink, **environ)
    freezer.pid = frozen.pid
    submissions = [rendered(["ann@sinkhole.test"])]
    submit_all(frozen, submissions)
    deployment.database.drain()
    moves = deployment.database.value(MOVES)
    thaw(frozen)
    until(lambda: frozen.logged(CLAIM_LOST), "its result is refused")
    assert other.logged("claims taken over")
    assert deployment.database.value(MOVES) == moves
    ledger = deployment.database.check(submissions, sink.copies, frozenset({DeliveryStatus(status)}))
    assert len(ledger.copies) == copy_count
    # Under its new name it works as any other.
    later = [rendered(["bob@sinkhole.test"])]
    submit_all(frozen, later)
    deployment.database.drain()
    deployment.database.check([*submissions, *later], sink.copies, SENT | {DeliveryStatus(status)})


def test_frozen_while_the_other_is_at_it(deployment, freezer):
    """Its late result meets a row that is `sending` again, under another claim: the row stays the other replica's."""
    stalled = []

    def on_message():
        freezer.freeze()
        sink.mode("stall@dot")

    sink = deployment.told_sink(on_message=on_message, on_exchange=stalled.append)
    frozen, _ = replicas(deployment, sink, MAIL_SMTP_DATA_TIMEOUT="10s")
    freezer.pid = frozen.pid
    submissions = [rendered(["ann@sinkhole.test"])]
    submit_all(frozen, submissions)
    until(lambda: len(stalled) == 2, "the other waits for the reply to its dot")
    moves = deployment.database.value(MOVES)
    thaw(frozen)
    until(lambda: frozen.logged(CLAIM_LOST), "its result is refused")
    assert deployment.database.value(MOVES) == moves
    assert deployment.database.value("SELECT certainty FROM mail.attempts") == "unknown"
    sink.mode("accept")
    deployment.database.drain()
    ledger = deployment.database.check(submissions, sink.copies)
    assert [attempt.status for attempt in ledger.deliveries[submissions[0].ids.pop()].attempts] == [
        "abandoned",
        "timed_out",
        "provider_accepted",
    ]
