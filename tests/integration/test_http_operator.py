"""The operators' API on the whole service: lists, one delivery, its attempts, flush, replicas."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
from aiosmtpd.smtp import SMTP
from http_kit import DELIVERIES, FLUSH, LOGIN_CODES, command, login_code

from mailkeep.store import reads

DEAD_LETTERS = "/api/v1/internal/dead-letters"
REPLICAS = "/api/v1/internal/replicas"
DEFERRED = "450 4.3.2 Not now, <ann@example.org>"


async def execute(dsn, statement, *arguments):
    """Run a statement of a test's own."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(statement, *arguments)
    finally:
        await connection.close()


async def accept(served, **fields):
    """Hand a command in and return its delivery's id."""
    answer = await served.post(DELIVERIES, command(**fields))
    assert answer.status_code == 202, answer.text
    return answer.json()["delivery_id"]


async def listed(served, path=DELIVERIES, **parameters):
    """Return the ids of all pages of a list, in order."""
    ids, cursor = [], None
    for _ in range(200):
        answer = await served.get(path, **parameters, **({"cursor": cursor} if cursor else {}))
        assert answer.status_code == 200, answer.text
        page = answer.json()
        ids += [delivery["delivery_id"] for delivery in page["deliveries"]]
        cursor = page["cursor"]
        if cursor is None:
            return ids
    raise AssertionError("the list has no end")


async def scheduled(served, **fields):
    """Hand a command in that waits for a day and return its delivery's id."""
    return await accept(served, send_at_ms=int((time.time() + 86400) * 1000), **fields)


# -- lists -------------------------------------------------------------------------------------------------------


async def test_pages_hold_everything_once_while_mail_arrives(served):
    """Pages follow each other newest first, without gap or repetition, although new mail comes in between."""
    ids = [await accept(served) for _ in range(7)]
    found, cursor = [], None
    for _ in range(4):
        page = (await served.get(DELIVERIES, limit=2, **({"cursor": cursor} if cursor else {}))).json()
        found += [delivery["delivery_id"] for delivery in page["deliveries"]]
        cursor = page["cursor"]
        await accept(served)
    assert found == ids[::-1]
    assert cursor is None


async def test_each_filter_lets_only_its_own_through(sending, next_hop):
    """Status, source, class, template, rule, recipient and time range each choose their deliveries."""
    sent = await accept(sending)
    relay = await accept(sending, **{"class": "relay"}, payload={"to": ["Bo@example.org", "cy@example.org"]})
    for delivery_id in (sent, relay):
        await sending.settled(delivery_id, "sent")
    next_hop.reply = DEFERRED
    answer = await sending.post(LOGIN_CODES, login_code(email="dee@example.org"), key="k")
    deferred = answer.json()["delivery_id"]
    await sending.settled(deferred, "rendered")
    waiting = await scheduled(sending, source="notification")
    everything = [waiting, deferred, relay, sent]
    middle = datetime.fromtimestamp((UUID(deferred).int >> 80) / 1000, UTC).isoformat().replace("+00:00", "Z")
    for parameters, wanted in (
        ({}, everything),
        ({"status": "sent"}, [relay, sent]),
        ({"status": "waiting"}, [waiting, deferred]),
        ({"status": ["waiting", "sent"]}, everything),
        ({"status": "queued"}, []),
        ({"status": "held"}, []),
        ({"status": "sending"}, []),
        ({"status": "waiting", "class": "auth"}, [deferred]),
        ({"source": "notification"}, [waiting]),
        ({"source": "authsession"}, [deferred]),
        ({"class": "relay"}, [relay]),
        ({"template": "login-code"}, [deferred]),
        ({"rule": "rcpt_deferred"}, [deferred]),
        ({"recipient": "ANN@example.org"}, [waiting, sent]),
        ({"recipient": "bo@EXAMPLE.ORG"}, [relay]),
        ({"recipient": "cy@example.org", "status": "sent"}, [relay]),
        ({"recipient": "cy@example.org", "status": "failed"}, []),
        ({"since": middle}, [waiting, deferred]),
        ({"until": middle}, [relay, sent]),
        ({"since": middle, "until": middle}, []),
    ):
        assert await listed(sending, **parameters) == wanted, parameters
        assert await listed(sending, limit=1, **parameters) == wanted, parameters


async def test_a_filter_that_matches_little_goes_on_page_by_page(served, dsn, monkeypatch):
    """A page looks at a bounded number of rows; what it did not reach comes with the next, and the end is told."""
    ids = [await accept(served) for _ in range(12)]
    await execute(
        dsn, "UPDATE mail.deliveries SET template_id = 'rare' WHERE id = ANY ($1)", [ids[0], ids[7]]
    )
    monkeypatch.setattr(reads, "SCANNED_ROWS", 3)
    first = (await served.get(DELIVERIES, template="rare")).json()
    assert first["deliveries"] == []
    assert first["cursor"] == ids[9]
    assert await listed(served, template="rare") == [ids[7], ids[0]]


BAD_PARAMETERS = {
    "unknown=1": "unknown",
    "status=gone": "status",
    "source=gone": "source",
    "class=gone": "class",
    "class=auth&class=auth": "class",
    "recipient=canary": "recipient",
    "since=yesterday": "since",
    "since=2026-01-01T00:00:00": "since",
    "limit=0": "limit",
    "limit=201": "limit",
    "limit=many": "limit",
    "cursor=canary": "cursor",
    "cursor=null": "cursor",
    "since=0.5": "since",
}


async def test_a_bad_parameter_is_refused_by_name(served):
    """Unknown, repeated and malformed query parameters are a 400 that names the parameter and not its value."""
    for parameters, field in BAD_PARAMETERS.items():
        answer = await served.client.get(f"{DELIVERIES}?{parameters}")
        assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert "canary" not in answer.text


# -- one delivery ------------------------------------------------------------------------------------------------


async def test_an_unknown_delivery_is_a_404(served):
    """An id that nothing has, or that is none, is a 404 problem: the smoke request of a health check."""
    for delivery_id in (UUID(int=0), UUID(int=2**128 - 1), "x", "%00", "'"):
        for path in (f"{DELIVERIES}/{delivery_id}", f"{DELIVERIES}/{delivery_id}/attempts"):
            answer = await served.get(path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_attempts_show_their_dialog_and_no_address(sending, next_hop):
    """A delivery tells its recipients masked, and each attempt with phase, reply, rule and steps."""
    next_hop.reply = DEFERRED
    delivery_id = await accept(sending, payload={"to": ["ann@example.org", "bo@example.org"]})
    delivery = await sending.settled(delivery_id, "rendered")
    assert [recipient["address"] for recipient in delivery["recipients"]] == ["a***@e***", "b***@e***"]
    assert [recipient["state"] for recipient in delivery["recipients"]] == ["open", "open"]
    assert delivery["reason"].startswith("450 4.3.2 Not now")
    answer = await sending.get(f"{DELIVERIES}/{delivery_id}/attempts")
    (attempt,) = answer.json()["attempts"]
    assert (attempt["number"], attempt["status"], attempt["phase"]) == (1, "provider_rejected", "rcpt")
    assert (attempt["code"], attempt["enhanced"], attempt["rule"]) == (450, "4.3.2", "rcpt_deferred")
    assert [recipient["ordinal"] for recipient in attempt["recipients"]] == [0, 1]
    phases = [step["phase"] for step in attempt["steps"]]
    assert phases[0] == "connect"
    assert phases.count("rcpt") == 2
    everything = answer.text + (await sending.get(DELIVERIES)).text
    assert "ann@" not in everything
    assert "bo@" not in everything


async def test_the_attempt_under_way_is_shown(sending, next_hop):
    """While a delivery is `sending` its attempts end with one that is in progress."""
    delivered, next_hop.delivered = next_hop.handle_DATA, asyncio.Event()

    async def slowly(*arguments):
        await next_hop.delivered.wait()
        return await delivered(*arguments)

    next_hop.handle_DATA = slowly
    delivery_id = await accept(sending)
    delivery = await sending.settled(delivery_id, "sending")
    (attempt,) = (await sending.get(f"{DELIVERIES}/{delivery_id}/attempts")).json()["attempts"]
    assert (attempt["number"], attempt["status"]) == (1, "in_progress")
    assert attempt["replica_id"] == delivery["claimed_by"]
    assert attempt["finished_at"] is None
    next_hop.delivered.set()
    await sending.settled(delivery_id, "sent")
    (attempt,) = (await sending.get(f"{DELIVERIES}/{delivery_id}/attempts")).json()["attempts"]
    assert attempt["status"] == "provider_accepted"


async def test_erased_payloads_leave_states_without_addresses(sending):
    """When a login code is sent its content is gone: the recipient's state stays, its address does not."""
    answer = await sending.post(LOGIN_CODES, login_code(), key="k")
    delivery = await sending.settled(answer.json()["delivery_id"], "sent")
    assert delivery["recipients"] == [{"address": None, "state": "sent", "reason": None}]


async def test_dead_letters_tell_why(serve, next_hop):
    """A delivery whose ladder is used up is listed as a dead letter with its cause, and among the others by status."""
    served = await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
        MAIL_RETRY_LADDER_TRANSACTIONAL="10ms",
    )
    sent = await accept(served)
    await served.settled(sent, "sent")
    next_hop.reply = DEFERRED
    dead = [await accept(served) for _ in range(3)]
    for delivery_id in dead:
        await served.settled(delivery_id, "dead_letter")
    assert await listed(served, DEAD_LETTERS, limit=2) == dead[::-1]
    assert await listed(served, status="dead_letter", rule="rcpt_deferred") == dead[::-1]
    assert await listed(served, DEAD_LETTERS, template="x") == []
    letter = (await served.get(DEAD_LETTERS)).json()["deliveries"][0]["dead_letter"]
    assert letter["cause"] == "ladder_exhausted"
    assert letter["reason"].startswith("450 4.3.2")
    assert (await served.get(DEAD_LETTERS, status="sent")).status_code == 400
    assert (await served.get(f"{DELIVERIES}/{sent}")).json()["dead_letter"] is None


# -- flush -------------------------------------------------------------------------------------------------------


async def deferred(served, next_hop, count, **fields):
    """Hand in `count` commands that the next hop defers, so that they wait for a minute; return their ids."""
    next_hop.reply = DEFERRED
    ids = [await accept(served, **fields) for _ in range(count)]
    for delivery_id in ids:
        await served.settled(delivery_id, "rendered")
    next_hop.reply = "250 Ok"
    return ids


async def test_a_flush_makes_everything_due_and_wakes_the_replica(sending, next_hop, monkeypatch):
    """A flush, in batches, sends at once what would have waited a minute, and counts it; scheduled mail keeps its time."""
    monkeypatch.setattr(reads, "FLUSH_BATCH", 2)
    ids = await deferred(sending, next_hop, 5)
    ids += await deferred(sending, next_hop, 1, **{"class": "relay"})
    later = await scheduled(sending)
    answer = await sending.post(FLUSH, {"all": True})
    assert (answer.status_code, answer.json()) == (200, {"flushed": 6})
    for delivery_id in ids:
        delivery = await sending.settled(delivery_id, "sent")
        assert delivery["attempts"] == 2
    assert (await sending.get(f"{DELIVERIES}/{later}")).json()["status"] == "rendered"


async def test_a_flush_is_announced_to_every_replica(sending, dsn):
    """What a flush moved is announced, so that no replica sleeps on."""
    connection = await asyncpg.connect(dsn)
    announced = asyncio.Queue()
    await connection.add_listener("mail_due", lambda *_notification: announced.put_nowait(True))
    try:
        async with asyncio.timeout(60):
            later = await scheduled(sending)
            await announced.get()  # that it was accepted
            await sending.post(FLUSH, {"delivery_id": later})
            await announced.get()
    finally:
        await connection.close()


async def test_a_forced_flush_probes_a_next_hop_that_is_out(serve, unused_tcp_port, next_hop):
    """While a breaker waits for its next probe a flush changes nothing; a forced one probes at once and the mail goes."""
    served = await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=f"127.0.0.1:{unused_tcp_port}",
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
    )
    breaker = served.service._workers.breakers["default"]
    delivery_id = [await accept(served) for _ in range(3)][-1]
    async with asyncio.timeout(60):
        while not breaker.wait_s():
            await asyncio.sleep(0.01)
    breaker._opened_until += 3600  # longer than this test waits
    back = await asyncio.get_running_loop().create_server(
        lambda: SMTP(next_hop, hostname="hop.test"), "127.0.0.1", unused_tcp_port
    )
    async with back:
        await served.post(FLUSH, {"all": True})
        await asyncio.sleep(0.5)
        assert (await served.get(f"{DELIVERIES}/{delivery_id}")).json()["status"] == "rendered"
        await served.post(FLUSH, {"all": True, "force": True})
        await served.settled(delivery_id, "sent")


async def test_a_flush_by_id_sends_scheduled_mail_too(sending):
    """Named by its id a scheduled delivery is sent at once; what has ended is left alone."""
    later = await scheduled(sending)
    assert (await sending.post(FLUSH, {"delivery_id": later})).json() == {"flushed": 1}
    ended = await sending.settled(later, "sent")
    assert (await sending.post(FLUSH, {"delivery_id": later})).json() == {"flushed": 0}
    assert (await sending.get(f"{DELIVERIES}/{later}")).json() == ended


async def test_a_flush_by_domain_or_next_hop_takes_only_its_own(sending, next_hop):
    """A flush of a domain or of a next hop leaves the others waiting."""
    (here,) = await deferred(sending, next_hop, 1)
    (there,) = await deferred(sending, next_hop, 1, payload={"to": ["bo@elsewhere.org"]})
    assert (await sending.post(FLUSH, {"next_hop": "other"})).json() == {"flushed": 0}
    assert (await sending.post(FLUSH, {"domain": "Elsewhere.ORG"})).json() == {"flushed": 1}
    await sending.settled(there, "sent")
    assert (await sending.get(f"{DELIVERIES}/{here}")).json()["status"] == "rendered"
    assert (await sending.post(FLUSH, {"next_hop": "default"})).json() == {"flushed": 1}
    await sending.settled(here, "sent")


BAD_FLUSHES = (
    ({}, 422, "missing_field"),
    ({"all": False}, 422, "missing_field"),
    ({"all": True, "domain": "example.org"}, 422, "missing_field"),
    ({"domain": "not a domain"}, 422, "invalid_field"),
    ({"delivery_id": "x"}, 422, "invalid_field"),
    ({"everything": True}, 422, "unknown_field"),
    (b'{"all": true, "all": true}', 400, "invalid_json"),
    (b" " * 5000, 413, "too_large"),
)


async def test_a_bad_flush_moves_nothing(sending, next_hop):
    """A flush must say exactly what it means."""
    (waiting,) = await deferred(sending, next_hop, 1)
    for body, status, code in BAD_FLUSHES:
        answer = await sending.post(FLUSH, body)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (await sending.get(f"{DELIVERIES}/{waiting}")).json()["attempts"] == 1


# -- replicas ----------------------------------------------------------------------------------------------------


async def test_replicas_are_live_stopped_or_lost(serve, dsn):
    """Every replica that ran lately is told with its state, the newest first."""
    stopping, lost, living = [await serve() for _ in range(3)]
    await stopping.service.stop()
    await execute(dsn, "UPDATE mail.replicas SET lost_at = mail.now() WHERE id = $1", lost.service.replica.id)
    replicas = (await living.get(REPLICAS)).json()["replicas"]
    assert [replica["state"] for replica in replicas] == ["live", "lost", "stopped"]
    assert replicas[0]["replica_id"] == str(living.service.replica.id)
    assert replicas[0]["silent_s"] < timedelta(minutes=1).total_seconds()


async def test_an_operator_has_no_effect_by_reading(served):
    """Unknown parameters are refused everywhere, and reads take no other method."""
    for path in (REPLICAS, DEAD_LETTERS, f"{DELIVERIES}/{UUID(int=0)}"):
        assert (await served.get(path, x=1)).status_code == 400
        assert (await served.post(path, {})).status_code == 405
    assert (await served.get(FLUSH)).status_code == 405
