"""Webhooks against a real receiver: signed, retried, told again after a crash, and never where they may not go."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest
from http_kit import DELIVERIES, command
from queue_kit import accepted, lose, replica, rows, shift_clock
from test_cli_queue import EXIT_FAILED, run
from webhook_kit import OLD_SECRET, PATIENCE_S, SECRET, Receiver, authority, verified

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.core.webhook import LADDER_S, parse_secret
from mailkeep.dispatch import webhooks as dispatching
from mailkeep.dispatch.gauges import GaugeReader
from mailkeep.dispatch.webhook_post import MAX_ANSWER_BYTES, WebhookPost
from mailkeep.dispatch.webhooks import WebhookDispatcher
from mailkeep.settings import Secret
from mailkeep.smtp import lookup
from mailkeep.store.webhooks import WebhookCursors

BODY = b'{"type":"webhook.test"}'


class OneReplica:
    """A registered replica that does nothing else."""

    def __init__(self, replica_id):
        self.id = replica_id


@pytest.fixture
async def receiver():
    """Run a receiver on plain HTTP."""
    made = Receiver()
    await made.start()
    yield made
    made.stop()


@pytest.fixture
async def dispatch(store):
    """Yield a function that runs a dispatcher of a replica of its own, and returns how to stop it."""
    running = []

    async def start(*webhooks):
        replica_id = await replica(store)
        dispatcher = WebhookDispatcher(webhooks, store, OneReplica(replica_id), look_s=0.02)
        task = asyncio.create_task(dispatcher.run())
        running.append(task)
        async with asyncio.timeout(PATIENCE_S):
            while not await rows(store, "SELECT FROM mail.webhooks"):
                await asyncio.sleep(0.01)
        return task, replica_id

    yield start
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Let a webhook that is out be probed again at once."""
    monkeypatch.setattr(dispatching, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(dispatching, "MAX_PAUSE_S", 0.05)


async def ended(store, count=1):
    """Let deliveries end; returns their ids."""
    return [str(await accepted(store, status=DeliveryStatus.SUPPRESSED)) for _ in range(count)]


async def ended_together(store, count):
    """Let deliveries end in one commit, so that they are told in one round."""
    ids = [await accepted(store) for _ in range(count)]
    cancel = "UPDATE mail.deliveries SET status = 'cancelled', finished_at = mail.now(), due_at = NULL WHERE id = ANY ($1)"
    await rows(store, cancel, ids)


async def state(store, holds):
    """Wait until what the table says of the webhook is as `holds` wants it; returns it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            (found,) = await WebhookCursors(store).states()
            if holds(found):
                return found
            await asyncio.sleep(0.02)


# -- one post ------------------------------------------------------------------------------------------------------


async def posted(settings, **options):
    """Post once."""
    post = WebhookPost(settings, **options)
    try:
        return await post.post("evt_1", BODY)
    finally:
        await post.close()


async def test_a_post_is_signed_with_each_secret(receiver):
    """Who knows the newest secret can check it, and who still knows the one before; nobody else."""
    settings = receiver.settings(secrets=(Secret(SECRET), Secret(OLD_SECRET)))
    assert (await posted(settings)).problem is None
    ((headers, body),) = receiver.requests
    assert headers["webhook-id"] == "evt_1"
    for secret in (SECRET, OLD_SECRET):
        assert verified(headers, body, secret) == {"type": "webhook.test"}
    with pytest.raises(Exception, match="No matching signature"):
        verified(headers, body, "whsec_" + "A" * 32)
    with pytest.raises(Exception, match="No matching signature"):
        verified(headers, body + b" ")


async def stall(_writer):
    """Say nothing for longer than anybody waits."""
    await asyncio.Event().wait()


async def reset(writer):
    """Break the connection off."""
    writer.transport.abort()


async def drip(writer):
    """Begin an answer, and go on for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def flood(writer):
    """Answer more than anybody wants to read."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n" + b"x" * (4 * MAX_ANSWER_BYTES))
    await writer.drain()
    await asyncio.Event().wait()


async def garbage(writer):
    """Speak something else."""
    writer.write(b"220 mail.example ESMTP\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (200, None),
        (204, None),
        (flood, None),
        (301, "it answered 301"),
        (307, "it answered 307"),
        (400, "it answered 400"),
        (410, "it answered 410"),
        (500, "it answered 500"),
        (stall, "it did not answer within 0.5 s"),
        (drip, "it did not answer within 0.5 s"),
        (reset, ""),
        (garbage, ""),
    ],
)
async def test_what_a_receiver_answers(receiver, answer, problem):
    """2xx is success, whatever follows it; all else is a problem in a sentence, in bounded time; only 410 is for good."""
    receiver.answer = lambda _nth: answer
    got = await posted(receiver.settings(), timeout_s=0.5 if answer in (stall, drip) else 30)
    if problem:
        assert got.problem == problem
    else:
        assert (got.problem is None) == (problem is None)
    assert got.gone == (answer == 410)
    assert "hidden" not in str(got)


async def test_a_redirect_is_not_followed(receiver):
    """Where a redirect leads was never judged: nothing is asked there."""

    async def redirect(writer):
        place = f"http://127.0.0.1:{receiver.port}/elsewhere"
        writer.write(f"HTTP/1.1 307 Elsewhere\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n".encode())
        await writer.drain()

    receiver.answer = lambda _nth: redirect
    assert (await posted(receiver.settings())).problem == "it answered 307"
    assert [headers["request"] for headers, _ in receiver.requests] == ["POST /hook?token=hidden HTTP/1.1"]


async def test_a_certificate_is_verified_for_the_host_name(tmp_path):
    """Of the right authority and for the name it is taken, else not."""
    ca, tls = authority()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    secure = Receiver()
    await secure.start(tls)
    try:
        settings = secure.settings(ca_file=tmp_path / "ca.pem")
        assert (await posted(settings)).problem is None
        assert "CERTIFICATE_VERIFY_FAILED" in (await posted(secure.settings())).problem
        other = Secret(f"https://ip6-localhost.test:{secure.port}/")
        assert "looked up" in (await posted(secure.settings(url=other, ca_file=tmp_path / "ca.pem"))).problem
    finally:
        secure.stop()


def resolving(monkeypatch, *answers):
    """Let the host of a webhook be at each of `answers` in turn, the last one from then on; returns what was asked."""
    asked = []

    def look_up(_self, address, flags=0):
        if flags:
            raise OSError
        asked.append(address.host)
        place = answers[min(len(asked), len(answers)) - 1]
        return [(2, 1, 6, "", (one, address.port)) for one in place]

    monkeypatch.setattr(lookup.Lookups, "_look_up", look_up)
    return asked


async def test_a_host_at_a_private_address_is_not_connected_to(receiver, monkeypatch):
    """Whether all of its addresses are private or one of several is: nothing is sent."""
    for place in (["127.0.0.1"], ["127.0.0.1", "93.184.215.14"]):
        resolving(monkeypatch, place)
        url = Secret(f"https://hook.example:{receiver.port}/")
        got = await posted(receiver.settings(url=url, allow_private=False))
        assert "not public" in got.problem
    assert receiver.requests == []


async def test_a_name_that_changes_its_address_leads_nowhere(receiver, monkeypatch):
    """DNS rebinding: the address that was judged is the one that is connected to; there is no second look-up."""
    asked = resolving(monkeypatch, ["127.0.0.1"], ["192.0.2.1"])
    url = Secret(f"http://hook.example:{receiver.port}/")
    assert (await posted(receiver.settings(url=url))).problem is None
    assert (asked, receiver.requests[0][0]["host"]) == (["hook.example"], f"hook.example:{receiver.port}")


# -- the dispatcher ------------------------------------------------------------------------------------------------


async def test_a_webhook_is_told_what_happens_from_now_on(store, receiver, dispatch):
    """What ended before is not told; what ends later is, in the shape of the API, and leaves no row behind."""
    await ended(store)
    await dispatch(receiver.settings())
    ids = await ended(store, 3)
    for headers, body in await receiver.got(3):
        event = verified(headers, body)
        assert headers["webhook-id"] == event["event_id"]
        assert (event["type"], event["data"]["status"]) == ("delivery.suppressed", "suppressed")
    assert sorted(event["data"]["delivery_id"] for event in receiver.events) == sorted(ids)
    found = await state(store, lambda found: found.told == 3)
    assert (found.waiting, found.given_up, found.problem, found.behind_s) == (0, 0, None, None)


async def test_only_the_types_that_it_wants_are_told(store, receiver, dispatch):
    """Others are passed over, and the cursor with them."""
    await dispatch(receiver.settings(events=("delivery.cancelled",)))
    await ended(store, 3)
    await state(store, lambda found: found.behind_s is None)
    assert receiver.requests == []


async def test_one_event_that_fails_is_tried_again_alone(store, receiver, dispatch):
    """The others are told meanwhile; it comes again, under the same id, when its wait is over."""
    await dispatch(receiver.settings(concurrency=1))
    receiver.answer = lambda nth: 500 if nth == 2 else 200
    await ended_together(store, 3)
    await state(store, lambda found: (found.told, found.waiting) == (2, 1))
    failed = receiver.requests[1][0]["webhook-id"]
    await shift_clock(store, timedelta(seconds=LADDER_S[0] * 2))
    requests = await receiver.got(4)
    assert [headers["webhook-id"] for headers, _ in requests].count(failed) == 2
    await state(store, lambda found: (found.told, found.waiting) == (3, 0))


async def test_a_receiver_that_is_away_is_told_all_when_it_is_back(store, receiver, dispatch):
    """While nothing is taken the events wait behind the cursor, a few on the ladder; then each is told."""
    receiver.answer = lambda _nth: 503
    await dispatch(receiver.settings())
    ids = await ended(store, 20)
    found = await state(store, lambda found: found.problem is not None and found.waiting >= 2)
    assert found.waiting < 20
    receiver.answer = lambda _nth: 200
    await shift_clock(store, timedelta(hours=6))
    found = await state(store, lambda found: (found.told, found.waiting) == (20, 0))
    taken = {event["data"]["delivery_id"] for event in receiver.events}
    assert (taken, found.problem, found.given_up) == (set(ids), None, 0)


async def test_of_a_round_that_told_nothing_one_event_leaves_the_line(store, receiver, dispatch, monkeypatch):
    """The others wait behind the cursor at the cost of no row, and the round ends with the first posts."""
    monkeypatch.setattr(dispatching, "FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr(dispatching, "MAX_PAUSE_S", 3600.0)
    receiver.answer = lambda _nth: 503
    await dispatch(receiver.settings(concurrency=4))
    await ended_together(store, 20)
    found = await state(store, lambda found: found.problem is not None)
    assert (found.waiting, found.told, found.problem) == (1, 0, "it answered 503")
    assert len(receiver.requests) == 4
    assert found.behind_s is not None


async def test_what_always_fails_is_given_up_and_can_be_retried(store, receiver, dispatch, log_lines):
    """After the last rung an event is kept as given up, said in the log, and told again when a person asks for it."""
    receiver.answer = lambda _nth: 500
    await dispatch(receiver.settings())
    await ended(store)
    await state(store, lambda found: found.waiting == 1)
    await rows(store, "UPDATE mail.webhook_retries SET tries = $1, due_at = mail.now()", len(LADDER_S))
    await state(store, lambda found: (found.waiting, found.given_up) == (0, 1))
    assert [line["event"] for line in log_lines if line["log_level"] == "error"] == [
        "webhook was not told of an event, which is given up"
    ]
    receiver.answer = lambda _nth: 200
    assert await WebhookCursors(store).retry("shop") == 1
    await state(store, lambda found: (found.told, found.given_up) == (1, 0))


async def test_who_is_gone_is_not_told_until_a_person_enables_it(store, receiver, dispatch, log_lines):
    """410 disables a webhook, loudly; enabled again it goes on from where it stopped."""
    receiver.answer = lambda _nth: 410
    await dispatch(receiver.settings())
    ids = await ended(store)
    await state(store, lambda found: found.disabled_at is not None)
    ids += await ended(store)
    assert [line["event"] for line in log_lines if line["log_level"] == "error"] == [
        "webhook is gone for good and disabled"
    ]
    receiver.answer = lambda _nth: 200
    assert len(receiver.requests) == 1
    assert await WebhookCursors(store).enable("shop")
    await state(store, lambda found: found.told == 2)
    assert sorted(event["data"]["delivery_id"] for event in receiver.events[1:]) == sorted(ids)


async def test_one_replica_tells_and_another_follows_it(store, receiver, dispatch):
    """Of two replicas one tells; when it is lost the other one goes on, and what the first still says changes nothing."""
    first, first_id = await dispatch(receiver.settings())
    _, second_id = await dispatch(receiver.settings())
    await ended(store)
    await receiver.got(1)
    assert (await state(store, lambda found: found.told == 1)).held_by == first_id
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await lose(store, first_id)
    await ended(store)
    assert (await state(store, lambda found: found.told == 2)).held_by == second_id
    cursor = (await WebhookCursors(store).hold(["shop"], second_id))["shop"]
    assert not await WebhookCursors(store).settle("shop", first_id, cursor, told=100)
    assert (await state(store, lambda found: True)).told == 2


async def test_a_silent_webhook_holds_up_no_other(store, receiver, dispatch):
    """While one receiver stalls, another is told at once."""
    silent = Receiver()
    await silent.start()
    silent.answer = lambda _nth: stall
    try:
        await dispatch(silent.settings(name="silent"), receiver.settings())
        async with asyncio.timeout(PATIENCE_S):
            while len(await rows(store, "SELECT FROM mail.webhooks")) < 2:
                await asyncio.sleep(0.01)
        for count in (1, 2):
            await ended(store)
            await receiver.got(count)
        assert len(await silent.got(1)) >= 1
    finally:
        silent.stop()


# -- the service and the command line ------------------------------------------------------------------------------


@pytest.fixture
def file(receiver, tmp_path):
    """Write a webhooks file that names the receiver."""
    path = tmp_path / "webhooks.toml"
    path.write_text(
        f'[webhook.shop]\nurl = "http://127.0.0.1:{receiver.port}/hook?token=hidden"\n'
        f'secrets = ["{SECRET}"]\nallow_private = true\n'
    )
    return path


async def test_a_service_tells_what_becomes_of_its_mail(serve, receiver, file, dsn):
    """From the request to the webhook: the event names the delivery and the caller's own key."""
    served = await serve(MAIL_WEBHOOKS_FILE=str(file))
    connection = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await connection.fetch("SELECT FROM mail.webhooks"):
                await asyncio.sleep(0.02)
    finally:
        await connection.close()
    answer = await served.post(DELIVERIES, command(), "order-10042")
    ((headers, body),) = await receiver.got(1)
    data = verified(headers, body)["data"]
    assert (data["delivery_id"], data["idempotency_key"]) == (answer.json()["delivery_id"], "order-10042")
    assert "ann" not in body.decode()


@pytest.mark.long
async def test_an_operator_tests_lists_retries_and_enables(store, dsn, receiver, file):
    """Each command says what it did; what is wrong is one clear line without the secret part of the URL."""
    environ = {"MAIL_POSTGRES_DSN": dsn, "MAIL_WEBHOOKS_FILE": str(file)}
    took = await run(environ, "webhooks", "test", "shop")
    assert took.lines == [f"shop (http://127.0.0.1:{receiver.port}) took it"]
    assert verified(*receiver.requests[0])["type"] == "webhook.test"
    receiver.answer = lambda _nth: 500
    failed = await run(environ, "webhooks", "test", "shop")
    assert (failed.code, failed.errors) == (
        EXIT_FAILED,
        f"mailkeep: shop (http://127.0.0.1:{receiver.port}): it answered 500\n",
    )
    assert (await run(environ, "webhooks", "test", "nobody")).code == EXIT_FAILED
    assert (await run(environ, "webhooks", "list")).lines[1].split()[:2] == ["shop", "new"]
    await WebhookCursors(store).add(["shop", "old"])
    await rows(store, "UPDATE mail.webhooks SET disabled_at = mail.now() WHERE name = 'shop'")
    listed = (await run(environ, "webhooks", "list")).output
    assert ("hidden" in listed, "not configured" in listed, "disabled" in listed) == (False, True, True)
    assert (await run(environ, "webhooks", "enable", "shop")).lines == ["shop is told again"]
    assert (await run(environ, "webhooks", "enable", "shop")).code == EXIT_FAILED
    assert (await run(environ, "webhooks", "retry", "shop")).lines == ["0 events are due now"]
    (shop,) = [row for row in (await run(environ, "webhooks", "list", "--json")).json() if row["configured"]]
    assert (shop["name"], shop["state"]["told"]) == ("shop", 0)
    made = (await run(environ, "webhooks", "secret")).output.strip()
    assert len(parse_secret(made)) == 32


async def test_the_lag_of_a_webhook_can_be_seen(store, receiver, dispatch):
    """How many events wait and for how long: behind the cursor, among retries, and nothing once they are told."""
    reader = GaugeReader(store, OneReplica(None), {}, ["shop"])
    cursors = WebhookCursors(store)
    await cursors.add(["shop", "forgotten"])
    await reader.read()
    assert (reader._waiting, reader._behind_ms) == ({("shop",): 0}, {("shop",): 0.0})
    await ended(store, 3)
    await shift_clock(store, timedelta(minutes=20))
    await reader.read()
    assert reader._waiting == {("shop",): 3}
    assert 20 * 60_000 <= reader._behind_ms["shop",] < 30 * 60_000
    receiver.answer = lambda nth: 500 if nth == 1 else 200
    await dispatch(receiver.settings())
    await told(store, 2)
    await reader.read()
    assert reader._waiting == {("shop",): 1}
    assert reader._behind_ms["shop",] >= 20 * 60_000
    await cursors.retry("shop")
    await told(store, 3)
    await reader.read()
    assert (reader._waiting, reader._behind_ms) == ({("shop",): 0}, {("shop",): 0.0})
    await rows(store, "UPDATE mail.webhooks SET disabled_at = mail.now()")
    await reader.read()
    assert reader._behind_ms == {}


async def told(store, count):
    """Wait until the webhook of the tests was told so many events."""
    async with asyncio.timeout(PATIENCE_S):
        while {found.name: found.told for found in await WebhookCursors(store).states()}["shop"] < count:
            await asyncio.sleep(0.02)
