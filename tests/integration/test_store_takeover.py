"""Takeover: mail of a replica that is gone goes on, once, and what may have been sent is never sent again by itself."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest
from queue_kit import (
    ANY,
    HOP,
    MESSAGE,
    accepted,
    attempts,
    check_accounts,
    claim_one,
    delivery,
    ending,
    finished,
    lose,
    now,
    payload,
    replica,
    row,
    rows,
    shift_clock,
    snapshot,
    status,
)

from mailkeep.core.delivery import DeliveryStatus, Guarantee
from mailkeep.core.outcome import Severity
from mailkeep.core.queue import POISON_TAKEOVERS

S = DeliveryStatus


async def test_mail_of_a_lost_replica_goes_on(store):
    """Its claims are due again at once, each with an attempt `abandoned` whose outcome nobody knows; no rung is used."""
    claim = await claim_one(store)
    await lose(store, claim.replica_id)
    assert await store.take_over() == {claim.id: S.RENDERED}
    kept = await row(store, claim.id)
    assert (kept["attempts"], kept["rungs_used"], kept["takeovers"], kept["claimed_by"]) == (1, 0, 1, None)
    (attempt,) = await attempts(store, claim.id)
    assert (attempt["status"], attempt["certainty"]) == ("abandoned", "unknown")
    assert (attempt["replica_id"], attempt["claim_token"]) == (claim.replica_id, claim.token)
    (again,) = await store.claim_due(await replica(store), ANY, 1000)
    assert (again.id, again.message, again.token) == (claim.id, MESSAGE, claim.token + 1)
    await check_accounts(store, [claim.id])


async def test_mail_of_a_replica_that_stopped_goes_on_at_once(store):
    """A replica that said goodbye with claims left need not be waited for."""
    claim = await claim_one(store)
    await store.stop_replica(claim.replica_id)
    assert await store.take_over() == {claim.id: S.RENDERED}


async def test_mail_of_the_living_is_let_be(store):
    """Claims of replicas that beat, and deliveries that nobody claims, are not touched."""
    await claim_one(store)
    await accepted(store)
    before = await snapshot(store)
    assert await store.mark_lost(60.0) == []
    assert await store.take_over() == {}
    assert await snapshot(store) == before


async def test_only_silence_longer_than_the_ttl_is_a_loss(store):
    """A replica is lost when its last beat is older than the TTL by the database's clock, and only once."""
    silent, beating = await replica(store), await replica(store)
    await shift_clock(store, timedelta(seconds=9))
    assert await store.mark_lost(10.0) == []
    assert await store.beat(beating, 3) is not None
    await shift_clock(store, timedelta(seconds=2))
    assert await store.mark_lost(10.0) == [silent]
    assert await store.mark_lost(10.0) == []


async def test_a_lost_replica_learns_it_at_its_next_beat(store):
    """Its late beat is refused, so that it starts anew instead of believing in its claims; so is one after its goodbye."""
    lost, stopped = await replica(store), await replica(store)
    await lose(store, lost)
    await store.stop_replica(stopped)
    assert await store.beat(lost, 0) is None
    assert await store.beat(stopped, 0) is None
    assert lost not in await store.mark_lost(0.0)


async def test_the_third_takeover_in_a_row_is_poison(store):
    """What was never finished by three replicas one after another becomes a dead letter instead of killing a fourth."""
    delivery_id = await accepted(store)
    for turn in range(1, POISON_TAKEOVERS + 1):
        replica_id = await replica(store)
        claims = await store.claim_due(replica_id, ANY, 1000)
        if not claims:
            assert await store.claim_suspect(replica_id, [HOP])
        await lose(store, replica_id)
        assert await store.take_over() == {
            delivery_id: S.RENDERED if turn < POISON_TAKEOVERS else S.DEAD_LETTER
        }
    (letter,) = await rows(store, "SELECT * FROM mail.dead_letters")
    assert (letter["delivery_id"], letter["cause"]) == (delivery_id, "poison")
    assert [attempt["number"] for attempt in await attempts(store, delivery_id)] == [1, 2, 3]
    await check_accounts(store, [delivery_id])


async def test_a_recorded_attempt_between_takeovers_is_no_poison(store):
    """Only takeovers in a row count: a delivery that was tried in between goes on."""
    delivery_id = await accepted(store)
    for _ in range(POISON_TAKEOVERS - 1):
        claim_id = await replica(store)
        await store.claim_due(claim_id, ANY, 1000)
        await lose(store, claim_id)
        await store.take_over()
    claim = await store.claim_suspect(await replica(store), [HOP])
    assert claim is not None
    await store.finish([finished(claim, ending(claim, Severity.TRANSIENT))])
    await shift_clock(store, timedelta(hours=1))
    replica_id = await replica(store)
    assert await store.claim_due(replica_id, ANY, 1000)
    await lose(store, replica_id)
    assert await store.take_over() == {delivery_id: S.RENDERED}


@pytest.mark.parametrize(("marked", "after"), [(True, S.HELD), (False, S.RENDERED)])
async def test_at_most_once_is_held_only_after_its_mark(store, marked, after):
    """I2: where the dot may have left, a person decides; where it surely did not, the mail goes on."""
    claim = await claim_one(store, guarantee=Guarantee.AT_MOST_ONCE)
    if marked:
        assert await store.mark_dot([claim]) == {claim.id}
    await lose(store, claim.replica_id)
    assert await store.take_over() == {claim.id: after}
    assert bool(await store.claim_due(await replica(store), ANY, 1000)) == (not marked)
    await check_accounts(store, [claim.id])


async def test_a_mark_under_at_least_once_holds_nothing(store):
    """`at_least_once` goes on whatever was marked: a second copy is what it allows."""
    claim = await claim_one(store)
    await store.mark_dot([claim])
    await lose(store, claim.replica_id)
    assert await store.take_over() == {claim.id: S.RENDERED}


@pytest.mark.parametrize("sensitive", [True, False])
async def test_what_is_too_late_expires_when_it_is_taken_over(store, sensitive):
    """Mail whose time ran out on a dead replica ends there, and its secret with it."""
    claim = await claim_one(store, expires_at=await now(store) + timedelta(minutes=5), sensitive=sensitive)
    await shift_clock(store, timedelta(minutes=6))
    await lose(store, claim.replica_id)
    assert await store.take_over() == {claim.id: S.EXPIRED}
    assert (await payload(store, claim.id) is None) == sensitive


async def test_poison_leaves_no_secret(store):
    """A login code that became a dead letter is erased like any other that ended."""
    claim = await claim_one(store, sensitive=True)
    await rows(store, "UPDATE mail.deliveries SET takeovers = $1", POISON_TAKEOVERS - 1)
    await lose(store, claim.replica_id)
    assert await store.take_over() == {claim.id: S.DEAD_LETTER}
    assert await payload(store, claim.id) is None


async def test_what_was_not_rendered_yet_is_queued_again(store):
    """A delivery whose replica died before it fixed the bytes still has its command."""
    delivery_id = await accepted(store, status=S.QUEUED, message=None, command=b"{}")
    replica_id = await replica(store)
    await store.claim_due(replica_id, ANY, 1000)
    await lose(store, replica_id)
    assert await store.take_over() == {delivery_id: S.QUEUED}


async def test_takers_at_once_take_each_claim_once(store):
    """Four replicas that find the same loss count each of its claims once."""
    lost = await replica(store)
    batch = [await delivery(store, status=S.SENDING) for _ in range(200)]
    await store.accept(lost, batch)
    await lose(store, lost)
    taken = await asyncio.gather(*(store.take_over() for _ in range(4)))
    assert sorted(key for found in taken for key in found) == sorted(new.id for new in batch)
    counted = await rows(
        store, "SELECT count(*) FILTER (WHERE attempts = 1 AND takeovers = 1) FROM mail.deliveries"
    )
    assert counted[0][0] == 200
    await check_accounts(store, [new.id for new in batch])


async def test_a_delivery_that_finishes_meanwhile_is_not_taken(store, dsn):
    """The taker passes by a row whose finish is being committed, and finds it done afterwards."""
    claim = await claim_one(store)
    await lose(store, claim.replica_id)
    other = await asyncpg.connect(dsn)
    async with other.transaction():
        await other.execute(
            "UPDATE mail.deliveries SET status = 'sent', recipient_states = 's', finished_at = mail.now(),"
            " claimed_by = NULL, claimed_at = NULL WHERE id = $1",
            claim.id,
        )
        assert await store.take_over() == {}
    await other.close()
    assert await store.take_over() == {}
    assert await status(store, claim.id) == "sent"


async def test_it_judges_the_row_it_locked(store, dsn):
    """I2: a mark committed after the taker began looking, and before it locked the row, still holds the delivery."""
    claims = [await claim_one(store, guarantee=Guarantee.AT_MOST_ONCE) for _ in range(3)]
    for claim in claims:
        await store.stop_replica(claim.replica_id)
    # The clock of this database stops the taker while it judges its first row; the others are not locked yet.
    other = await asyncpg.connect(dsn)
    await other.execute("SELECT pg_advisory_lock(1)")
    await other.execute(
        "CREATE OR REPLACE FUNCTION mail.now() RETURNS timestamptz LANGUAGE plpgsql VOLATILE AS $$"
        " BEGIN IF current_setting('application_name') = 'mailkeep' THEN PERFORM pg_advisory_xact_lock(1); END IF;"
        " RETURN now(); END $$"
    )
    taking = asyncio.create_task(store.take_over())
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    while not await other.fetchval(waiting):
        assert not taking.done()
        await asyncio.sleep(0.01)
    marked = await other.fetch(
        "UPDATE mail.deliveries SET dot_at = now() WHERE id IN"
        " (SELECT id FROM mail.deliveries FOR UPDATE SKIP LOCKED) RETURNING id"
    )
    await other.execute("SELECT pg_advisory_unlock(1)")
    statuses = await taking
    await other.close()
    assert marked
    statuses |= await store.take_over()
    assert {statuses[found["id"]] for found in marked} == {S.HELD}
