"""The next hop is away: its mail is parked without using up a ladder, and goes on by itself when the hop is back."""

from harness import login_code, mails, submit_all, until

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.drill.ledger import SENT

ONE_RUNG = {"MAIL_RETRY_LADDER_AUTH": "100ms", "MAIL_RETRY_LADDER_TRANSACTIONAL": "100ms"}
"""A ladder that an outage would use up at once."""


def breaker_states(service):
    """Return the states the breakers went through."""
    return [line["state"] for line in service.logged("breaker changed")]


def test_an_outage_parks_mail_and_ends_by_itself(deployment):
    """Parked mail keeps all its rungs, login codes past their expiry end `expired`, the rest is sent once the hop is back."""
    sink = deployment.sink()
    sink.ready()
    service = deployment.service(sink.port, **ONE_RUNG).start()
    before = mails(8)
    submit_all(service, before)
    deployment.database.drain()
    sink.kill9()
    short = [login_code(f"late-{number}@sinkhole.test", expires_in_s=2) for number in range(4)]
    during = mails(40)
    submit_all(service, [*short, *during])
    until(lambda: "open" in breaker_states(service), "the breaker opens")
    until(lambda: list(deployment.database.statuses().values()).count("expired") == 4, "late codes expire")
    assert set(deployment.database.statuses().values()) <= {"sent", "expired", "rendered", "sending"}
    assert deployment.database.value("SELECT max(rungs_used) FROM mail.deliveries") == 0
    assert deployment.database.value("SELECT count(*) FROM mail.attempts WHERE scope = 'next_hop'") >= 3
    sink.spawn()
    sink.ready()
    deployment.database.drain()
    ledger = deployment.database.check(
        [*before, *short, *during], sink.copies, SENT | {DeliveryStatus.EXPIRED}
    )
    expired = {delivery.id for delivery in ledger.deliveries.values() if delivery.status == "expired"}
    assert expired == {ledger.keys[submission.key] for submission in short}
    assert expired.isdisjoint(copy.delivery_id for copy in ledger.copies)
    assert deployment.database.value("SELECT max(rungs_used) FROM mail.deliveries") == 0
    assert breaker_states(service)[-1] == "closed"
