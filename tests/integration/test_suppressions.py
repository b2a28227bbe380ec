"""Suppressions in the running service: from a mail server's answer to the next mail, over HTTP and as an operator sees it."""

import asyncio

import pytest
from http_kit import DELIVERIES, FLUSH, LOGIN_CODES, command, login_code
from queue_kit import rows

from mailkeep.store.postgres import Store
from mailkeep.store.suppressions import Suppressions
from mailkeep.telemetry import metrics

SUPPRESSIONS = "/api/v1/internal/suppressions"
GONE = "550 5.1.1 <ann@example.org>: No such user"
EVIDENCE = "550 5.1.1 <…@…>: No such user"


async def sent_to(sending, *recipients, until=("sent", "failed", "suppressed", "rendered"), **fields):
    """Hand a mail in and wait until it has a status of `until`."""
    answer = await sending.post(
        DELIVERIES, command(payload={"to": list(recipients or ["ann@example.org"])}, **fields)
    )
    assert answer.status_code == 202, answer.text
    return await sending.settled(answer.json()["delivery_id"], *until)


async def suppressed(sending, **parameters):
    """Return the suppression list."""
    answer = await sending.get(SUPPRESSIONS, **parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()["suppressions"]


class Counting:
    """Counts the RCPTs that a next hop gets."""

    def __init__(self, next_hop):
        self.count = 0
        self._answer = next_hop.handle_RCPT
        next_hop.handle_RCPT = self.handle

    async def handle(self, *arguments):
        self.count += 1
        return await self._answer(*arguments)


async def test_an_address_that_does_not_exist_gets_no_more_mail(sending, next_hop):
    """After one hard bounce the address stands on the list with its evidence, masked; the next mail meets no mail server."""
    asked = Counting(next_hop)
    next_hop.reply = GONE
    failed = await sent_to(sending, until=("failed",))
    (made,) = await suppressed(sending)
    assert (made["address"], made["reason"], made["evidence"]) == ("ann@example.org", "hard_bounce", EVIDENCE)
    assert (made["delivery_id"], made["attempt"], made["rule"]) == (
        failed["delivery_id"],
        1,
        "rcpt_mailbox_gone",
    )
    next_hop.reply = "250 2.1.5 Ok"
    answer = await sending.post(DELIVERIES, command(payload={"to": ["ANN@Example.org"]}))
    assert answer.json()["status"] == "suppressed"
    delivery = (await sending.get(f"{DELIVERIES}/{answer.json()['delivery_id']}")).json()
    assert (delivery["status"], delivery["attempts"], delivery["rule"]) == (
        "suppressed",
        0,
        "suppression_list",
    )
    assert delivery["reason"] == f"on the suppression list, hard_bounce: {EVIDENCE}"
    assert delivery["recipients"] == [
        {"address": "A***@e***", "state": "suppressed", "reason": f"hard_bounce: {EVIDENCE}"}
    ]
    assert asked.count == 1
    removed = await sending.client.delete(f"{SUPPRESSIONS}/{made['suppression_id']}")
    assert (removed.status_code, removed.json()) == (200, made)
    assert (await sent_to(sending, until=("sent", "suppressed")))["status"] == "sent"


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ("450 4.2.1 Mailbox busy", "rendered"),
        ("451 4.7.1 Greylisted", "rendered"),
        ("452 4.2.2 Mailbox full", "rendered"),
        ("552 5.2.2 Mailbox full", "failed"),
        ("550 5.1.8 Sender address rejected: domain not found", "failed"),
        ("550 5.7.1 Relaying denied", "failed"),
        ("554 5.7.1 Blocked using a blocklist", "rendered"),
        ("550 5.7.0 Rejected for policy reasons", "failed"),
        ("421 4.3.2 Closing", "rendered"),
    ],
)
async def test_other_answers_suppress_nobody(sending, next_hop, reply, status):
    """A full mailbox, a deferral, what is about us or about policy: the address may be as good as any."""
    next_hop.reply = reply
    await sent_to(sending, until=(status,))
    async with asyncio.timeout(20):
        while not (await sending.get(DELIVERIES)).json()["deliveries"][0]["attempts"]:
            await asyncio.sleep(0.02)
    assert await suppressed(sending) == []


async def test_a_refused_message_suppresses_nobody(sending, next_hop):
    """The answer to the final dot is about the message, even in the words of an unknown mailbox."""

    async def refuse(*_arguments):
        return "550 5.1.1 No such user"

    next_hop.handle_DATA = refuse
    assert (await sent_to(sending, "ann@example.org", "bo@example.org", until=("failed",)))["attempts"] == 1
    assert await suppressed(sending) == []


async def test_the_list_of_the_provider_is_the_provider_s(sending, next_hop):
    """An address on a list of the provider's ends the delivery `suppressed` by a rejected attempt; it is not put on ours."""
    next_hop.reply = "550 5.1.1 Amazon SES did not send the message: address is on the suppression list"
    delivery = await sent_to(sending, until=("suppressed",))
    (attempt,) = (await sending.get(f"{DELIVERIES}/{delivery['delivery_id']}/attempts")).json()["attempts"]
    assert (attempt["status"], attempt["rule"]) == ("provider_rejected", "rcpt_provider_suppressed")
    assert "suppression list" in delivery["reason"]
    assert await suppressed(sending) == []


async def test_a_login_code_for_a_suppressed_address_is_taken(sending, next_hop, dsn):
    """Its intake succeeds with outcome `suppressed`, alike under its key again; nothing of the code is left."""
    next_hop.reply = GONE
    await sent_to(sending, until=("failed",))
    first = await sending.post(LOGIN_CODES, login_code(), key="signin-1")
    assert (first.status_code, first.json()["outcome"]) == (200, "suppressed")
    (made,) = await suppressed(sending)
    await sending.client.delete(f"{SUPPRESSIONS}/{made['suppression_id']}")
    again = await sending.post(LOGIN_CODES, login_code(), key="signin-1")
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    store = await Store.open(dsn, pool_size=1)
    try:
        statement = "SELECT 1 FROM mail.payloads WHERE delivery_id = $1::text::uuid"
        assert await rows(store, statement, first.json()["delivery_id"]) == []
    finally:
        await store.close()


async def test_the_others_of_a_message_get_it(sending, next_hop):
    """A delivery to two of whom one is suppressed is sent to the other, and the record says who was left out and why."""
    next_hop.reply = GONE
    await sent_to(sending, until=("failed",))
    next_hop.reply = "250 2.1.5 Ok"
    delivery = await sent_to(sending, "ann@example.org", "bo@example.org", until=("suppressed",))
    assert [each["state"] for each in delivery["recipients"]] == ["suppressed", "sent"]
    assert [each["reason"] for each in delivery["recipients"]] == [f"hard_bounce: {EVIDENCE}", None]
    (envelope,) = next_hop.messages
    assert envelope.rcpt_tos == ["bo@example.org"]
    assert delivery["attempts"] == 1


async def test_mail_that_waits_is_looked_up_again(sending, next_hop, log_lines, monkeypatch):
    """What another delivery's bounce suppresses meanwhile is not tried again: it ends, counted, when its attempt is due."""
    counted = []
    monkeypatch.setattr(
        metrics, "count", lambda metric, labels: counted.extend((metric, each) for each in labels)
    )
    asked = Counting(next_hop)
    next_hop.reply = "450 4.2.1 Later"
    waiting = await sent_to(sending, until=("rendered",))
    async with asyncio.timeout(20):
        while not (await sending.get(f"{DELIVERIES}/{waiting['delivery_id']}")).json()["attempts"]:
            await asyncio.sleep(0.02)
    next_hop.reply = GONE
    await sent_to(sending, until=("failed",))
    assert (await sending.post(FLUSH, {"delivery_id": waiting["delivery_id"]})).json() == {"flushed": 1}
    ended = await sending.settled(waiting["delivery_id"], "suppressed")
    assert (ended["attempts"], asked.count) == (1, 2)
    assert [line["delivery_id"] for line in log_lines if line["event"] == "recipients are suppressed"] == [
        waiting["delivery_id"]
    ]
    assert "ann@example.org" not in str(log_lines)
    assert counted.count((metrics.SUPPRESSED, ("api",))) == 1


async def test_two_in_flight_to_one_address_agree(sending, next_hop):
    """Both meet the same answer at once, both fail, and one suppression is made."""
    meeting = asyncio.Barrier(2)

    async def together(*_arguments):
        async with asyncio.timeout(20):
            await meeting.wait()
        return GONE

    next_hop.handle_RCPT = together
    ended = await asyncio.gather(*(sent_to(sending, until=("failed",)) for _ in range(2)))
    assert [delivery["attempts"] for delivery in ended] == [1, 1]
    assert len(await suppressed(sending)) == 1


async def test_how_long_is_a_setting(serve, next_hop):
    """`MAIL_SUPPRESSION_TTL` says when the address may have mail again."""
    served = await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
        MAIL_SUPPRESSION_TTL="2h",
    )
    next_hop.reply = GONE
    await sent_to(served, until=("failed",))
    (made,) = await suppressed(served)
    made_at, ends_at = made["created_at"], made["expires_at"]
    assert int(ends_at[11:13]) == (int(made_at[11:13]) + 2) % 24


async def test_the_list_is_read_in_pages_and_filtered(served, dsn):
    """Pages end where `cursor` is null; an address or a reason narrows them; what is no filter is refused."""
    store = await Store.open(dsn, pool_size=1)
    try:
        from test_store_suppressions import suppress

        await suppress(store, *(f"{n}@example.org" for n in range(5)))
        await suppress(store, "brief@example.org", ttl_s=3600)
        assert len(await Suppressions(store).page(10)) == 6
    finally:
        await store.close()
    seen, cursor = [], {}
    while cursor is not None:
        page = (await served.get(SUPPRESSIONS, limit=4, **cursor)).json()
        seen += page["suppressions"]
        cursor = {"cursor": page["cursor"]} if page["cursor"] else None
    assert len({each["address"] for each in seen}) == 6
    (found,) = await suppressed(served, recipient="BRIEF@example.org")
    assert (found["address"], found["actor"], found["delivery_id"]) == ("brief@example.org", "eve", None)
    assert await suppressed(served, reason="complaint") == []
    for wrong in ({"reason": "spam"}, {"recipient": "ann at example.org"}, {"state": "x"}, {"limit": "201"}):
        assert (await served.get(SUPPRESSIONS, **wrong)).status_code == 400


async def test_what_is_not_suppressed_can_t_be_removed(served):
    """An unknown id, and what is no id, answer 404; another method 405."""
    for name in ("01a20320-0000-7000-8000-000000000000", "ann@example.org"):
        answer = await served.client.delete(f"{SUPPRESSIONS}/{name}")
        assert (answer.status_code, answer.json()["detail"]) == (404, "no suppression has this id")
    refused = await served.get(f"{SUPPRESSIONS}/01a20320-0000-7000-8000-000000000000")
    assert (refused.status_code, refused.headers["allow"]) == (405, "DELETE")
