"""The worker pool and its scheduler over real PostgreSQL and real SMTP: bounded, fair, fenced, and never late."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest
from dispatch_kit import dispatching, hop, until
from queue_kit import (
    ANY,
    HOP,
    accepted,
    attempts,
    blocked_backend,
    delivery,
    lose,
    now,
    row,
    rows,
    shift_clock,
    status,
)
from smtp_servers import Act, Drip, scripted_peer

from mailkeep.core.delivery import DeliveryClass, DeliveryStatus, Guarantee
from mailkeep.core.queue import SUSPECT_TAKEOVERS
from mailkeep.dispatch.scheduler import FORGOTTEN_AFTER_S
from mailkeep.dispatch.worker import HELD_BYTES, HELD_PER_WORKER
from mailkeep.store.postgres import INLINE_MESSAGE_BYTES, Store

TRANSACTIONAL = DeliveryClass.TRANSACTIONAL
LARGE = b"Subject: large\r\n\r\n" + (b"x" * 70 + b"\r\n") * (INLINE_MESSAGE_BYTES // 72 + 1)


async def _accept_many(store, count, **fields):
    ids = []
    while len(ids) < count:
        batch = [await delivery(store, **fields) for _ in range(min(count - len(ids), 100))]
        await store.accept(batch[0].id, batch)
        ids += [new.id for new in batch]
    return ids


def _is(store, delivery_id, wanted):
    async def holds():
        return await status(store, delivery_id) == wanted

    return holds


# -- the way of a delivery --------------------------------------------------------------------------------------


async def test_due_mail_is_sent_and_recorded(store):
    """What is due is claimed, sent and recorded, once; nothing is held afterwards."""
    async with scripted_peer() as peer, dispatching(store, hop(HOP, peer.port)) as dispatch:
        delivery_id = await accepted(store)
        dispatch.scheduler.wake()
        await until(_is(store, delivery_id, "sent"))
        await until(lambda: not dispatch.pool.held)
    assert len(peer.bodies) == 1
    (attempt,) = await attempts(store, delivery_id)
    assert (attempt["status"], attempt["certainty"]) == ("provider_accepted", "delivered")


async def test_a_large_message_is_loaded_and_sent(store):
    """What is too large to come with its claim arrives whole."""
    async with scripted_peer() as peer, dispatching(store, hop(HOP, peer.port)):
        delivery_id = await accepted(store, message=LARGE)
        await until(_is(store, delivery_id, "sent"))
    assert peer.bodies == [LARGE + b".\r\n"]


async def test_a_next_hop_that_is_out_parks_its_mail(store, unused_tcp_port):
    """While nobody listens no rung is used and no delivery ends, however many there are; then all of them arrive."""
    ids = await _accept_many(store, 30)
    async with dispatching(store, hop(HOP, unused_tcp_port)) as dispatch:
        await until(lambda: dispatch.pool.breakers[HOP].wait_s() > 0)
        found = await rows(store, "SELECT status, rungs_used FROM mail.deliveries")
        assert {record["rungs_used"] for record in found} == {0}
        assert {record["status"] for record in found} <= {"rendered", "sending"}
    async with scripted_peer() as peer, dispatching(store, hop(HOP, peer.port)):
        for delivery_id in ids:
            await until(_is(store, delivery_id, "sent"))


async def test_one_worker_is_enough(store):
    """With a concurrency of 1 every class is sent all the same."""
    async with scripted_peer() as peer, dispatching(store, hop(HOP, peer.port), concurrency=1):
        ids = [await accepted(store, delivery_class=delivery_class) for delivery_class in DeliveryClass]
        for delivery_id in ids:
            await until(_is(store, delivery_id, "sent"))


# -- bounds -----------------------------------------------------------------------------------------------------


async def test_what_is_held_in_memory_is_bounded(store):
    """With a full table of every class the claims in memory stay within their places."""
    for delivery_class in DeliveryClass:
        await _accept_many(store, 150, delivery_class=delivery_class)
    async with scripted_peer(greeting=Act.STALL) as peer, dispatching(store, hop(HOP, peer.port)) as dispatch:
        await until(lambda: dispatch.pool.held)
        await asyncio.sleep(0.5)
        assert len(dispatch.pool.held) <= 10 * HELD_PER_WORKER


async def test_messages_about_to_be_born_are_bounded_in_bytes(store, unused_tcp_port):
    """Places are given for no more message bytes than may be held, also before any of them is committed."""
    async with dispatching(store, hop(HOP, unused_tcp_port), schedule=False) as dispatch:
        given = 0
        for _ in range(8):
            new = await delivery(store)
            given += dispatch.pool.reserve(new.id, HOP, TRANSACTIONAL, HELD_BYTES // 2)
        assert 1 <= given <= 2
        for delivery_id in list(dispatch.pool.held):
            dispatch.pool.cancel(delivery_id, HOP, TRANSACTIONAL, HELD_BYTES // 2)


async def test_a_busy_next_hop_has_its_next_batch_claimed(store):
    """While every connection of a hop is in use its due mail is claimed all the same, so that none of them idles."""
    await _accept_many(store, 5)
    async with (
        scripted_peer(greeting=Act.STALL) as peer,
        dispatching(store, hop(HOP, peer.port, max_connections=1), schedule=False) as dispatch,
    ):
        (first,) = await store.claim_due(dispatch.replica.id, [(HOP, TRANSACTIONAL, 1)], 1)
        dispatch.pool.hand_over(first)
        assert [
            name for name, delivery_class, _ in dispatch.pool.wanted() if delivery_class is TRANSACTIONAL
        ] == [HOP]


class CountingStore(Store):
    """A store that counts how often it was asked for due deliveries."""

    looks = 0

    async def claim_due(self, replica_id, wanted, at_most):
        self.looks += 1
        return await super().claim_due(replica_id, wanted, at_most)


async def test_it_does_not_poll_for_what_it_cannot_take(store):
    """Due mail that nobody may take now, such as a second suspect, costs no statements in a tight loop."""
    for _ in range(2):
        delivery_id = await accepted(store)
        await rows(
            store, "UPDATE mail.deliveries SET takeovers = $2 WHERE id = $1", delivery_id, SUSPECT_TAKEOVERS
        )
    counting = CountingStore(store._pool, store.hash_key)
    async with (
        scripted_peer(greeting=Act.STALL) as peer,
        dispatching(counting, hop(HOP, peer.port)) as dispatch,
    ):
        await until(lambda: dispatch.pool.held)
        before = counting.looks
        await asyncio.sleep(2.0)
        assert counting.looks - before <= 10


# -- fairness ---------------------------------------------------------------------------------------------------


async def test_a_stalled_next_hop_does_not_hold_the_mail_of_others(store):
    """A hop that accepts connections and says nothing keeps its own mail waiting, and nobody else's."""
    await _accept_many(store, 200, next_hop="stalled")
    async with (
        scripted_peer(greeting=Act.STALL) as stalled,
        scripted_peer() as well,
        dispatching(
            store, hop("stalled", stalled.port, max_connections=2), hop("well", well.port)
        ) as dispatch,
    ):
        await until(lambda: len(dispatch.pool.held) >= 10)
        ids = await _accept_many(store, 3, next_hop="well")
        for delivery_id in ids:
            await until(_is(store, delivery_id, "sent"))


async def test_large_mail_of_a_stalled_next_hop_does_not_hold_that_of_others(store):
    """The bound on large messages in memory is not used up by one hop that stalls."""
    await _accept_many(store, 6, next_hop="stalled", message=LARGE)
    async with (
        scripted_peer(greeting=Act.STALL) as stalled,
        scripted_peer() as well,
        dispatching(
            store, hop("stalled", stalled.port, max_connections=8), hop("well", well.port)
        ) as dispatch,
    ):
        await until(lambda: len(dispatch.pool.held) >= 6)
        await asyncio.sleep(0.3)
        delivery_id = await accepted(store, next_hop="well", message=LARGE)
        await until(_is(store, delivery_id, "sent"))


async def test_login_codes_pass_a_flood(store):
    """While a slow hop works through a backlog, a login code that becomes due goes before what waits in memory."""
    await _accept_many(store, 300)
    async with (
        scripted_peer(dot=Drip(b"250 ok\r\n", 0.01)) as slow,
        dispatching(store, hop(HOP, slow.port, max_connections=2)) as dispatch,
    ):
        await until(lambda: len(dispatch.pool.held) >= 60)
        before = len(slow.bodies)
        code = await accepted(store, delivery_class=DeliveryClass.AUTH)
        dispatch.scheduler.wake()
        await until(_is(store, code, "sent"))
        assert len(slow.bodies) - before <= 30


# -- time -------------------------------------------------------------------------------------------------------


async def test_nothing_is_sent_after_its_time(store):
    """A delivery that waited for its worker beyond `expires_at` is not sent any more: it ends `expired`."""
    expires_at = await now(store) + timedelta(seconds=60)
    ids = [await accepted(store, expires_at=expires_at) for _ in range(2)]
    async with (
        scripted_peer(greeting=[Act.STALL, b"220 peer.test\r\n"]) as peer,
        dispatching(
            store, hop(HOP, peer.port, max_connections=1, timers={"greeting_s": 3.0}), schedule=False
        ) as dispatch,
    ):
        claims = await store.claim_due(dispatch.replica.id, ANY, 1000)
        assert sorted(claim.id for claim in claims) == sorted(ids)
        for claim in claims:
            dispatch.pool.hand_over(claim)
        await shift_clock(store, timedelta(minutes=2))
        dispatch.schedule()
        for delivery_id in ids:
            await until(_is(store, delivery_id, "expired"))
    assert peer.bodies == []


# -- fencing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarantee", Guarantee)
@pytest.mark.parametrize("slow_at", ["greeting", "rcpt"])
async def test_a_replica_that_lost_its_claim_sends_no_dot(store, slow_at, guarantee):
    """I4: with its mail taken over in the middle of the dialog, a replica ends that dialog without the message."""
    delivery_id = await accepted(store, guarantee=guarantee)
    answer = Drip({"greeting": b"220 peer.test\r\n", "rcpt": b"250 2.1.5 ok\r\n"}[slow_at], 0.4)
    async with (
        scripted_peer(**{slow_at: answer}) as peer,
        dispatching(store, hop(HOP, peer.port)) as dispatch,
    ):
        await until(lambda: peer.commands and (slow_at == "greeting" or "RCPT" in peer.commands[0]))
        old_id = dispatch.replica.id
        await dispatch.unschedule()
        await lose(store, old_id)
        assert await store.take_over() == {delivery_id: DeliveryStatus.RENDERED}
        before = await row(store, delivery_id)
        await until(lambda: not dispatch.pool.held)
        assert await row(store, delivery_id) == before
        assert dispatch.replica.id != old_id
    assert peer.bodies == []


async def test_at_most_once_sends_no_dot_without_its_mark(store, dsn):
    """I2: while the mark can't be committed the dot does not leave; afterwards the delivery is sent, once."""
    delivery_id = await accepted(store, guarantee=Guarantee.AT_MOST_ONCE)
    other = await asyncpg.connect(dsn)
    async with scripted_peer(rcpt=Drip(b"250 ok\r\n", 0.1)) as peer, dispatching(store, hop(HOP, peer.port)):
        await until(_is(store, delivery_id, "sending"))
        async with other.transaction():
            await other.execute("SELECT FROM mail.deliveries FOR UPDATE")
            await other.execute("SELECT pg_cancel_backend($1)", await blocked_backend(dsn))
            await asyncio.sleep(0.3)
            assert peer.bodies == []
        await until(_is(store, delivery_id, "sent"))
    await other.close()
    assert len(peer.bodies) == 1


async def test_at_most_once_is_held_when_the_reply_is_lost(store):
    """I2: with the dot out and no reply the delivery stops for a person and is never sent again by itself."""
    delivery_id = await accepted(store, guarantee=Guarantee.AT_MOST_ONCE)
    async with scripted_peer(dot=Act.CLOSE) as peer, dispatching(store, hop(HOP, peer.port)) as dispatch:
        await until(_is(store, delivery_id, "held"))
        dispatch.scheduler.wake()
        await asyncio.sleep(0.5)
    assert len(peer.bodies) == 1
    (attempt,) = await attempts(store, delivery_id)
    assert attempt["certainty"] == "unknown"


# -- stopping and forgetting ------------------------------------------------------------------------------------


async def test_an_orderly_stop_gives_back_what_it_holds(store):
    """What was not begun, or had not reached its dot, waits for others: no attempt is counted, nothing was sent."""
    ids = await _accept_many(store, 20)
    async with (
        scripted_peer(mail=Act.STALL) as peer,
        dispatching(store, hop(HOP, peer.port, max_connections=2)) as dispatch,
    ):
        await until(lambda: len(peer.commands) == 2)
    found = await rows(store, "SELECT status, attempts FROM mail.deliveries")
    assert {(record["status"], record["attempts"]) for record in found} == {("rendered", 0)}
    assert len(found) == len(ids)
    assert dispatch.pool.held == {}
    assert peer.bodies == []


async def test_a_dot_that_was_out_at_the_stop_is_unknown(store):
    """An attempt that is cut after its dot is recorded as unknown, and retried as the guarantee allows."""
    delivery_id = await accepted(store)
    async with scripted_peer(dot=Act.STALL) as peer, dispatching(store, hop(HOP, peer.port)):
        await until(lambda: peer.bodies)
    assert await status(store, delivery_id) == "rendered"
    (attempt,) = await attempts(store, delivery_id)
    assert attempt["certainty"] == "unknown"


async def test_claims_without_a_holder_are_given_back(store):
    """A claim whose commit was answered to nobody does not stay in the table for ever."""
    async with scripted_peer() as peer, dispatching(store, hop(HOP, peer.port), schedule=False) as dispatch:
        delivery_id = await accepted(store, dispatch.replica.id, status=DeliveryStatus.SENDING)
        await shift_clock(store, timedelta(seconds=FORGOTTEN_AFTER_S + 1))
        dispatch.schedule()
        await until(_is(store, delivery_id, "sent"))
    assert len(peer.bodies) == 1


async def test_a_claim_under_way_is_not_given_back(store):
    """However long its attempt takes, what a worker holds stays claimed: it is never sent beside itself."""
    delivery_id = await accepted(store)
    async with scripted_peer(greeting=Act.STALL) as peer, dispatching(store, hop(HOP, peer.port)) as dispatch:
        await until(lambda: peer.commands)
        await shift_clock(store, timedelta(seconds=2 * FORGOTTEN_AFTER_S))
        dispatch.scheduler.wake()
        await asyncio.sleep(1.5)
        assert (await row(store, delivery_id))["claim_token"] == 1
        assert await status(store, delivery_id) == "sending"
