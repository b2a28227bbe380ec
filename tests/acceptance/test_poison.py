"""A mail whose attempt kills the process is set aside after three takeovers; those queued beside it are delivered."""

import os
import signal

from harness import QUICK, mails, rendered, submit_all, until

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.core.queue import POISON_TAKEOVERS
from mailkeep.drill.ledger import SENT

DEADLY = "defer-999x+deadly@sinkhole.test"


def test_poison_ends_as_a_dead_letter(deployment):
    """Killed whenever it offers the deadly recipient, and started again as a supervisor would: the queue gets through."""
    kills = []

    def on_exchange(exchange):
        if exchange.recipients == (DEADLY,):
            kills.append(service.pid)
            os.kill(service.pid, signal.SIGKILL)

    sink = deployment.told_sink("stall", on_exchange=on_exchange)
    service = deployment.service(sink.port, **QUICK, MAIL_SHUTDOWN_TIMEOUT="2s").start()
    poison = rendered([DEADLY])
    submissions = [*mails(4), poison, *mails(4)]
    submit_all(service, submissions)
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    sink.mode("accept")

    def is_over():
        if not service.is_alive:
            service.spawn()
        return set(deployment.database.statuses().values()) == {"sent", "dead_letter"}

    until(is_over, "only the poison is left")
    ledger = deployment.database.check(submissions, sink.copies, SENT | {DeliveryStatus.DEAD_LETTER})
    (poison_id,) = poison.ids
    assert ledger.dead_letters == {poison_id}
    assert deployment.database.value("SELECT cause FROM mail.dead_letters") == "poison"
    assert {attempt.status for attempt in ledger.deliveries[poison_id].attempts} == {"abandoned"}
    assert len(set(kills)) == POISON_TAKEOVERS
