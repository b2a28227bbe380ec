"""Bounces: each outcome of relayed mail that reaches nobody is told to its sender once, whatever way it came about."""

import asyncio
import email
import email.policy
from datetime import UTC, datetime

import msgspec
import pytest
from aiosmtpd.smtp import SMTP
from dispatch_kit import until
from http_kit import DELIVERIES, command
from queue_kit import accepted, claim_one, ending, finished, replica, rows
from send_kit import SENDER, calling, mail, new_key

from mailkeep.core.bounce import MAX_HEAD_BYTES
from mailkeep.core.delivery import DeliveryClass, DeliveryStatus, Source
from mailkeep.core.outcome import RecipientOutcome, Scope, Severity
from mailkeep.store.bounces import OwedBounces

NULL_SENDER = "<>"  # as aiosmtpd shows it
RELAY = {"source": Source.SEND, "delivery_class": DeliveryClass.RELAY}


class PickyHop:
    """An SMTP server that answers each recipient as told, and keeps what it takes."""

    def __init__(self):
        self.replies = {}
        self.envelopes = []

    async def handle_RCPT(self, _server, _session, envelope, address, _options):
        reply = self.replies.get(address, "250 2.1.5 Ok")
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, _server, _session, envelope):
        self.envelopes.append(envelope)
        return "250 2.0.0 Ok"

    @property
    def bounces(self):
        """The messages that came with the null reverse-path."""
        return [envelope for envelope in self.envelopes if envelope.mail_from == NULL_SENDER]


@pytest.fixture
async def hop():
    """Run the next hop."""
    picky = PickyHop()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(picky, hostname="hop.test", enable_SMTPUTF8=True), "127.0.0.1", 0
    )
    picky.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield picky
    server.close()


@pytest.fixture
async def sends(serve, hop):
    """Run a service that sends to `hop` and gives up after a second attempt."""
    served = await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example.org",
        MAIL_SEND_HTTP_ADDR="127.0.0.1:0",
        MAIL_RETRY_LADDER_RELAY="100ms",
    )
    async with calling(served) as calls:
        yield calls


@pytest.fixture
async def token(dsn):
    """The token of a key for every address of a domain."""
    return (await new_key(dsn, "@example.org")).token


def report_of(envelope):
    """Return a bounce as the standard library reads it: message, groups of fields, header of the original."""
    message = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    words, status, head = message.iter_parts()
    assert not [part.defects for part in (message, *words.walk(), *status.walk()) if part.defects]
    assert words.get_content_type() == "text/plain"
    assert status.get_content_type() == "message/delivery-status"
    assert head.get_content_type() in {"text/rfc822-headers", "message/global-headers"}
    return message, status.get_payload(), head


# -- through the whole service ----------------------------------------------------------------------------------------


async def test_a_refused_recipient_bounces_at_once(sends, token, hop, dsn, store):
    """Of three recipients one is refused and one deferred: the first bounces now, the other when it is given up."""
    hop.replies = {
        "gone@example.net": "550 5.1.1 No such user",
        "full@example.net": "451 4.3.0 Temporary failure",
    }
    answer = await sends.post(
        token, mail(to=["bo@example.net", "gone@example.net"], bcc=["full@example.net"], subject="Grüße")
    )
    original_id = answer.json()["delivery_id"]
    await until(lambda: len(hop.bounces) == 2)
    first, second = hop.bounces
    for envelope in (first, second):
        assert envelope.rcpt_tos == [SENDER]
    message, (about, gone), head = report_of(first)
    assert message["To"] == SENDER
    assert message["From"] == "Mail Delivery System <mail@mailkeep.example.org>"
    assert message["Auto-Submitted"] == "auto-replied"
    assert about["Reporting-MTA"] == "dns; mailkeep.example.org"
    assert about["X-Mailkeep-Delivery-Id"] == original_id
    assert email.utils.parsedate_to_datetime(about["Arrival-Date"]) <= datetime.now(UTC)
    assert (
        dict(gone.items()).items()
        >= {
            "Final-Recipient": "rfc822; gone@example.net",
            "Action": "failed",
            "Status": "5.1.1",
            "Diagnostic-Code": "smtp; 550 5.1.1 No such user",
        }.items()
    )
    original = email.message_from_string(head.get_payload(), policy=email.policy.default)
    assert (original["Subject"], original["Message-ID"]) == ("Grüße", f"<{original_id}@example.org>")
    assert "It works." not in first.content.decode()
    _, (_, full), _ = report_of(second)
    assert (full["Final-Recipient"], full["Status"]) == ("rfc822; full@example.net", "4.4.7")
    assert full["Diagnostic-Code"] == "smtp; 451 4.3.0 Temporary failure"
    await settled_down(store)
    assert len(hop.bounces) == 2
    found = await rows(
        store, "SELECT parent_id::text AS parent, class FROM mail.deliveries WHERE source = 'bounce'"
    )
    assert [(row["parent"], row["class"]) for row in found] == [(original_id, "relay")] * 2


async def settled_down(store):
    """Wait until nothing is owed and nothing waits."""
    busy = (
        "SELECT (SELECT count(*) FROM mail.bounces_owed) +"
        " (SELECT count(*) FROM mail.deliveries WHERE finished_at IS NULL) AS count"
    )

    async def is_idle():
        return not (await rows(store, busy))[0]["count"]

    await until(is_idle)


async def test_a_bounce_is_never_bounced(sends, token, hop, store):
    """A sender that does not exist either: its bounce fails, and that is the end of it."""
    hop.replies = {"gone@example.net": "550 5.1.1 No such user", "away@example.org": "550 5.1.1 Nor this"}
    await sends.post(token, mail(**{"from": "away@example.org"}, to=["gone@example.net"]))

    async def has_failed():
        return len(await rows(store, "SELECT FROM mail.deliveries WHERE status = 'failed'")) == 2

    await until(has_failed)
    await settled_down(store)
    sources = await rows(store, "SELECT source, status FROM mail.deliveries ORDER BY source")
    assert [tuple(row) for row in sources] == [("bounce", "failed"), ("send", "failed")]


async def test_addresses_beyond_ascii_are_told(sends, token, hop):
    """Names in Unicode come as RFC 6533 has them, in a header that any program can read."""
    hop.replies = {"bö@example.net": "553 5.6.7 Non-ASCII addresses are not permitted"}
    await sends.post(token, mail(to=["bö@example.net"]))
    await until(lambda: hop.bounces)
    assert hop.bounces[0].content.isascii()
    _, (_, group), head = report_of(hop.bounces[0])
    assert group["Final-Recipient"] == "utf-8; b\\x{F6}@example.net"
    assert head.get_content_type() == "message/global-headers"


async def test_other_classes_owe_nothing(sends, hop, store):
    """A refused notification is the producer's to look at; nobody gets a bounce."""
    hop.replies = {"gone@example.net": "550 5.1.1 No such user"}
    answer = await sends.served.post(DELIVERIES, command(payload={"to": ["gone@example.net"]}))
    await sends.served.settled(answer.json()["delivery_id"], "failed")
    assert not await rows(store, "SELECT FROM mail.bounces_owed")
    await settled_down(store)
    assert not hop.envelopes


# -- in the commit of the outcome -------------------------------------------------------------------------------------


async def owed(store):
    """Return what is owed: (letters, status), in order."""
    found = await rows(store, "SELECT failed, status FROM mail.bounces_owed ORDER BY id")
    return [tuple(row) for row in found]


async def test_each_outcome_owes_what_it_failed(store):
    """A part that fails is owed with its attempt, the rest with the end; nobody is owed twice."""
    claim = await claim_one(store, recipients=("a@example.org", "b@example.org", "c@example.org"), **RELAY)
    outcome = ending(claim, Severity.TRANSIENT)
    mixed = (
        RecipientOutcome(0, Severity.PERMANENT, Scope.RECIPIENT, "r", 550, "5.1.1", "no"),
        RecipientOutcome(1, Severity.SUCCESS, Scope.MESSAGE, "ok", 250),
        RecipientOutcome(2, Severity.TRANSIENT, Scope.MESSAGE, "later", 451),
    )
    await store.finish([finished(claim, msgspec.structs.replace(outcome, recipients=mixed))])
    assert await owed(store) == [("f..", "rendered")]
    await rows(
        store, "UPDATE mail.deliveries SET status = 'expired', due_at = NULL, finished_at = mail.now()"
    )
    assert await owed(store) == [("f..", "rendered"), ("..o", "expired")]


async def test_each_way_to_an_end_owes_a_bounce(store):
    """Ladder exhausted, refused, expired while it waited, expired when claimed, poison: one each; sent and cancelled: none."""
    holder = await replica(store)
    given_up = await claim_one(store, holder, **RELAY)
    await store.finish([finished(given_up, ending(given_up, Severity.TRANSIENT), ladder_s=())])
    refused = await claim_one(store, holder, **RELAY)
    await store.finish([finished(refused, ending(refused, Severity.PERMANENT))])
    await accepted(store, expires_at=datetime(2026, 1, 1, tzinfo=UTC), **RELAY)
    assert await store.expire_due() == 1
    poison = await claim_one(store, holder, **RELAY)
    await rows(store, "UPDATE mail.deliveries SET takeovers = 2 WHERE id = $1", poison.id)
    await store.stop_replica(holder)
    assert (await store.take_over())[poison.id] is DeliveryStatus.DEAD_LETTER
    assert await owed(store) == [
        ("o", "dead_letter"),
        ("f", "failed"),
        ("o", "expired"),
        ("o", "dead_letter"),
    ]
    other = await replica(store)
    sent = await claim_one(store, other, **RELAY)
    await store.finish([finished(sent)])
    await accepted(store, **RELAY)
    await rows(
        store,
        "UPDATE mail.deliveries SET status = 'cancelled', due_at = NULL, finished_at = mail.now()"
        " WHERE status = 'rendered'",
    )
    assert len(await owed(store)) == 4


@pytest.mark.parametrize(
    "fields",
    [
        {"delivery_class": DeliveryClass.TRANSACTIONAL},
        {"delivery_class": DeliveryClass.AUTH},
        {**RELAY, "source": Source.BOUNCE},
        {**RELAY, "sensitive": True},
    ],
)
async def test_nothing_is_owed_for_other_mail(store, fields):
    """Other classes, bounces and sensitive mail owe nothing when they fail."""
    claim = await claim_one(store, **fields)
    await store.finish([finished(claim, ending(claim, Severity.PERMANENT))])
    assert await owed(store) == []


async def test_a_suppressed_recipient_is_owed(store):
    """Whom the suppression list leaves out, at birth or later, the sender is told of; stub mode tells nobody anything."""
    listed = await claim_one(store, recipients=("gone@example.org",), **RELAY)
    await store.finish(
        [finished(listed, ending(listed, Severity.PERMANENT, scope=Scope.RECIPIENT, suppress=True))]
    )
    await rows(store, "DELETE FROM mail.bounces_owed")
    await accepted(store, recipients=("gone@example.org", "ann@example.org"), **RELAY)
    assert await owed(store) == [("x.", "rendered")]
    await accepted(store, recipients=("bo@example.org",), status=DeliveryStatus.SUPPRESSED, **RELAY)
    assert len(await owed(store)) == 1


async def test_what_is_owed_is_taken_by_one(store):
    """A taken bounce is nobody else's until its taker is given up; without content it can be told to nobody."""
    claim = await claim_one(store, message=b"Subject: x\r\n\r\nbody\r\n", **RELAY)
    await store.finish([finished(claim, ending(claim, Severity.PERMANENT, text="no\u2028way"))])
    bounces = OwedBounces(store)
    (bounce,) = await bounces.take(10)
    assert (bounce.sender, bounce.recipients) == ("mail@example.org", ("ann@example.org",))
    assert bounce.head.startswith(b"Subject: x\r\n\r\n")
    assert bounce.said[0].outcome.severity is Severity.PERMANENT
    assert await bounces.take(10) == []
    await rows(store, "UPDATE mail.bounces_owed SET taken_at = mail.now() - interval '1 minute'")
    await rows(store, "DELETE FROM mail.payloads")
    (again,) = await bounces.take(10)
    assert (again.id, again.can_be_told) == (bounce.id, False)
    await bounces.settle([again.id])
    assert await owed(store) == []


async def test_a_null_sender_is_told_nothing(store):
    """Mail that came with the null reverse-path has nobody to tell."""
    claim = await claim_one(store, sender="", **RELAY)
    assert claim.sender == ""
    await store.finish([finished(claim, ending(claim, Severity.PERMANENT))])
    (bounce,) = await OwedBounces(store).take(1)
    assert not bounce.can_be_told


async def test_of_a_large_header_a_bounded_part_goes_back(store):
    """A header of a megabyte is read and told up to its bound."""
    head = b"".join(b"X-%d: %s\r\n" % (number, b"x" * 900) for number in range(1100))
    claim = await claim_one(store, message=head + b"\r\nbody\r\n", **RELAY)
    await store.finish([finished(claim, ending(claim, Severity.PERMANENT))])
    (bounce,) = await OwedBounces(store).take(1)
    assert len(bounce.head) <= MAX_HEAD_BYTES + 4


async def test_no_bounce_leaves_for_a_reserved_domain(serve, hop, store, log_lines):
    """A sender that can't be sent to (RFC 2606) is given up with one line; nothing stays owed."""
    hop.replies = {"gone@example.net": "550 5.1.1 No such user"}
    served = await serve(
        MAIL_SMTP_MODE="smtp", MAIL_SMTP_ADDR=hop.address, MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example"
    )
    relayed = command(payload={"to": ["gone@example.net"]}) | {"class": "relay"}
    assert (await served.post(DELIVERIES, relayed)).status_code == 202
    await until(lambda: any(line["event"] == "a bounce could not be made" for line in log_lines))
    await settled_down(store)
    assert not hop.envelopes
