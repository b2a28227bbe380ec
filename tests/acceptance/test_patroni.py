"""PostgreSQL fails over under load, with a synchronous standby under Patroni: nothing that was acknowledged is lost.

`MAILKEEP_TEST_FAILOVER=1` (`make patroni`) adds the loss of the primary's machine, for which Patroni waits 20 seconds.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from harness import PATIENCE_S, QUICK, Deployment, Service, mails, migrate, submit
from patroni_kit import PatroniCluster, missing

from mailkeep.drill.ledger import Copy, Submission

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not installed (see .ci/run): {missing()}")
RATE_S = 0.02


class Producer:
    """Four threads that each submit one mail after the other, every one under its key until it is answered 2xx."""

    def __init__(self, service: Service) -> None:
        self.submissions: list[Submission] = []
        self.answered_at_s: list[float] = []
        self._service, self._is_over = service, threading.Event()
        self._threads = [threading.Thread(target=self._produce, daemon=True) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _produce(self) -> None:
        number = 0
        while not self._is_over.is_set():
            number += 1
            submission = mails(4)[number % 4]
            self.submissions.append(submission)
            while not submission.ids:
                submit(self._service, [submission], 1)
                time.sleep(RATE_S)
            self.answered_at_s.append(time.monotonic())

    def more(self, count: int) -> None:
        """Wait until so many more were answered."""
        wanted, deadline_s = len(self.answered_at_s) + count, time.monotonic() + PATIENCE_S
        while len(self.answered_at_s) < wanted:
            assert time.monotonic() < deadline_s, "the load does not go on"
            time.sleep(RATE_S)

    def stop(self) -> None:
        """Submit no more, and wait until everything is answered."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "something is not answered"

    def gap_s(self, since_s: float) -> float:
        """Return the longest time since `since_s` in which nothing was acknowledged."""
        times = sorted(at for at in self.answered_at_s if at >= since_s)
        return max(after - before for before, after in pairwise(times))


@pytest.fixture(scope="module")
def cluster() -> Iterator[PatroniCluster]:
    """Run primary and standby."""
    running = PatroniCluster()
    try:
        running.start()
        migrate(running.database)
        running.database.watch()
        yield running
    finally:
        running.stop()


@pytest.fixture
def database(cluster: PatroniCluster):
    """The database of the primary, whichever node that is; emptied."""
    cluster.wait_for_standby()
    cluster.database.fetch(
        "TRUNCATE mail.deliveries, mail.payloads, mail.recipients, mail.attempts, mail.dead_letters,"
        " mail.idempotency_keys, mail.replicas, witness.moves"
    )
    return cluster.database


def judge(
    deployment: Deployment, producer: Producer, copies: Callable[[], list[Copy]], what: str, since_s: float
) -> None:
    """Drain, check the ledger and print what was seen."""
    producer.stop()
    deployment.database.drain()
    ledger = deployment.database.check(producer.submissions, copies())
    refused = sum(
        not (answer and answer.delivery_id) for each in producer.submissions for answer in each.answers
    )
    extra = len(ledger.copies) - len(ledger.deliveries)
    print(  # noqa: T201 - the measured figures
        f"{what}: accepted {len(ledger.deliveries)}, lost 0, second copies {extra}, refused or cut {refused},"
        f" nothing acknowledged for {producer.gap_s(since_s):.1f} s"
    )


def test_a_switchover_under_load_loses_nothing(deployment: Deployment, cluster: PatroniCluster):
    """The standby takes over in order while mail comes in and goes out: callers repeat for some seconds, everything goes once."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, **QUICK).start()
    producer = Producer(service)
    producer.more(100)
    began_s = time.monotonic()
    cluster.switch_over()
    producer.more(100)
    judge(deployment, producer, lambda: sink.copies, "switchover", began_s - 1)


@pytest.mark.skipif("MAILKEEP_TEST_FAILOVER" not in os.environ, reason="takes a minute: make patroni")
def test_the_loss_of_the_primary_under_load_loses_nothing(deployment: Deployment, cluster: PatroniCluster):
    """Patroni and PostgreSQL of the primary are killed at once; what was acknowledged is on the standby, and the other comes back."""
    sink = deployment.told_sink()
    service = deployment.service(sink.port, **QUICK).start()
    producer = Producer(service)
    producer.more(100)
    lost, began_s = cluster.primary, time.monotonic()
    cluster.kill9(lost)
    producer.more(100)
    assert cluster.primary != lost
    cluster.start_node(lost)
    cluster.wait_for_standby()
    producer.more(100)
    judge(deployment, producer, lambda: sink.copies, "loss of the primary", began_s - 1)
