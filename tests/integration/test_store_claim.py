"""Claims: each due delivery goes to one claimant, in order, within bounds, and never after its time."""

import asyncio
from collections import Counter
from datetime import timedelta

import asyncpg
import pytest
from queue_kit import (
    ANY,
    HOP,
    MESSAGE,
    accepted,
    check_accounts,
    delivery,
    fresh_id,
    now,
    payload,
    replica,
    row,
    rows,
    shift_clock,
    status,
)

from mailkeep.core.delivery import DeliveryClass, DeliveryStatus, Guarantee, Source
from mailkeep.core.queue import SUSPECT_TAKEOVERS, Claim
from mailkeep.store.postgres import INLINE_MESSAGE_BYTES

TRANSACTIONAL = DeliveryClass.TRANSACTIONAL


async def _accept_many(store, count, **fields):
    batch = [await delivery(store, **fields) for _ in range(count)]
    await store.accept(batch[0].id, batch)
    return [new.id for new in batch]


async def test_a_claim_brings_all_that_an_attempt_needs(store):
    """The claimant gets content, envelope and history, and the row names it with a token one higher."""
    replica_id = await replica(store)
    delivery_id = await accepted(store, guarantee=Guarantee.AT_MOST_ONCE, recipients=("a@b.org", "c@d.org"))
    (claim,) = await store.claim_due(replica_id, ANY, 1000)
    kept = await row(store, delivery_id)
    assert claim == Claim(
        replica_id=replica_id,
        id=delivery_id,
        token=1,
        source=Source.API,
        delivery_class=TRANSACTIONAL,
        guarantee=Guarantee.AT_MOST_ONCE,
        next_hop=HOP,
        attempts=0,
        rungs_used=0,
        recipient_states="oo",
        size_bytes=len(MESSAGE),
        sensitive=False,
        accepted_at=kept["accepted_at"],
        sender="mail@example.org",
        recipients=("a@b.org", "c@d.org"),
        message=MESSAGE,
    )
    assert (kept["status"], kept["claimed_by"], kept["claim_token"]) == ("sending", replica_id, 1)
    assert (kept["due_at"], kept["claimed_at"] is not None) == (None, True)


async def test_a_large_message_is_loaded_later(store):
    """What is larger than the inline bound does not come with its claim, and can be asked for."""
    message = b"x" * (INLINE_MESSAGE_BYTES + 1)
    delivery_id = await accepted(store, message=message)
    (claim,) = await store.claim_due(await replica(store), ANY, 1000)
    assert (claim.message, claim.recipients) == (None, ("ann@example.org",))
    assert await store.load_message(delivery_id) == message


async def test_claimants_at_once_never_share_a_delivery(store):
    """Eight replicas that claim at the same time get every row, and no row twice."""
    ids = await _accept_many(store, 300)

    async def claim_all():
        replica_id, claims = await fresh_id(store), []
        while found := await store.claim_due(replica_id, [(HOP, TRANSACTIONAL, 7)], 7):
            claims += found
        return claims

    claims = [claim for found in await asyncio.gather(*(claim_all() for _ in range(8))) for claim in found]
    assert sorted(claim.id for claim in claims) == sorted(ids)
    assert {claim.token for claim in claims} == {1}
    await check_accounts(store, ids)


async def test_no_more_is_claimed_than_there_are_places(store):
    """However much is wanted of each hop and class, the bound on all of them together holds; the first wanted come first."""
    for delivery_class in DeliveryClass:
        await _accept_many(store, 5, delivery_class=delivery_class)
    wanted = [(HOP, DeliveryClass.RELAY, 3), (HOP, DeliveryClass.AUTH, 9), (HOP, TRANSACTIONAL, 9)]
    claims = await store.claim_due(await replica(store), wanted, 6)
    assert Counter(claim.delivery_class for claim in claims) == {
        DeliveryClass.RELAY: 3,
        DeliveryClass.AUTH: 3,
    }


async def test_rows_that_are_locked_are_passed_by(store, dsn):
    """A claimant takes what is free at once and does not wait for what another is about to take."""
    ids = await _accept_many(store, 5)
    other = await asyncpg.connect(dsn)
    async with other.transaction():
        await other.execute("SELECT FROM mail.deliveries WHERE id = ANY ($1) FOR UPDATE", ids[:2])
        claims = await asyncio.wait_for(store.claim_due(await replica(store), ANY, 1000), 5)
    await other.close()
    assert sorted(claim.id for claim in claims) == sorted(ids[2:])


async def test_the_oldest_go_first_and_no_more_than_asked_for(store):
    """Each (next hop, class) gives up to its bound, the longest due first; nothing else is touched."""
    instant = await now(store)
    for number in range(4):
        for delivery_class in (TRANSACTIONAL, DeliveryClass.RELAY):
            delivery_id = await accepted(
                store, delivery_class=delivery_class, idempotency_key=f"{delivery_class}{number}"
            )
            await rows(
                store,
                "UPDATE mail.deliveries SET due_at = $2 WHERE id = $1",
                delivery_id,
                instant - timedelta(seconds=number),
            )
    await accepted(store, next_hop="other")
    claims = await store.claim_due(
        await replica(store),
        [(HOP, TRANSACTIONAL, 2), (HOP, DeliveryClass.RELAY, 1), (HOP, DeliveryClass.AUTH, 9)],
        1000,
    )
    keys = await rows(
        store,
        "SELECT key FROM mail.idempotency_keys WHERE delivery_id = ANY ($1)",
        [claim.id for claim in claims],
    )
    assert {found["key"] for found in keys} == {"transactional3", "transactional2", "relay3"}


async def test_what_is_not_due_waits(store):
    """A delivery for later is not claimed before its time by the database's clock, and then it is."""
    delivery_id = await accepted(store, send_at=await now(store) + timedelta(hours=1))
    replica_id = await replica(store)
    assert await store.claim_due(replica_id, ANY, 1000) == []
    await shift_clock(store, timedelta(hours=1))
    assert [claim.id for claim in await store.claim_due(replica_id, ANY, 1000)] == [delivery_id]


@pytest.mark.parametrize("sensitive", [True, False])
async def test_what_is_too_late_expires_instead_of_being_claimed(store, sensitive):
    """A delivery whose time ran out ends at the claim, and its secret with it."""
    late = await accepted(store, expires_at=await now(store) + timedelta(minutes=5), sensitive=sensitive)
    await shift_clock(store, timedelta(minutes=5))
    timely = await accepted(store)
    assert [claim.id for claim in await store.claim_due(await replica(store), ANY, 1000)] == [timely]
    kept = await row(store, late)
    assert (kept["status"], kept["claimed_by"], kept["finished_at"]) == (
        "expired",
        None,
        await _ended_at(store, late),
    )
    assert (await payload(store, late) is None) == sensitive


async def _ended_at(store, delivery_id):
    ended_at = (await row(store, delivery_id))["finished_at"]
    assert ended_at is not None
    return ended_at


async def test_housekeeping_expires_what_nobody_claims(store):
    """Rows of a parked hop, suspects and rows for later end too when their time is over; others stay."""
    expires_at = await now(store) + timedelta(minutes=5)
    ids = [
        await accepted(store, expires_at=expires_at, next_hop="parked", sensitive=True),
        await accepted(store, expires_at=expires_at),
        await accepted(store, expires_at=expires_at, send_at=expires_at + timedelta(hours=1)),
    ]
    await rows(store, "UPDATE mail.deliveries SET takeovers = $2 WHERE id = $1", ids[1], SUSPECT_TAKEOVERS)
    living = [
        await accepted(store, expires_at=expires_at, status=DeliveryStatus.SENDING),
        await accepted(store, expires_at=expires_at + timedelta(hours=1)),
        await accepted(store),
    ]
    assert await store.expire_due() == 0
    await shift_clock(store, timedelta(minutes=5))
    assert await store.expire_due() == 3
    assert [await status(store, key) for key in ids] == ["expired"] * 3
    assert await payload(store, ids[0]) is None
    assert [await status(store, key) for key in living] == ["sending", "rendered", "rendered"]


async def _suspect(store, **fields):
    delivery_id = await accepted(store, **fields)
    await rows(
        store, "UPDATE mail.deliveries SET takeovers = $2 WHERE id = $1", delivery_id, SUSPECT_TAKEOVERS
    )
    return delivery_id


async def test_a_suspect_is_claimed_alone(store):
    """What was taken over twice never comes with others; it is claimed one at a time, of the hops asked for."""
    suspects = {await _suspect(store), await _suspect(store)}
    await _suspect(store, next_hop="parked")
    innocent = await accepted(store)
    replica_id = await replica(store)
    assert [claim.id for claim in await store.claim_due(replica_id, ANY, 1000)] == [innocent]
    first, second = await store.claim_suspect(replica_id, [HOP]), await store.claim_suspect(replica_id, [HOP])
    assert first is not None
    assert second is not None
    assert {first.id, second.id} == suspects
    assert await store.claim_suspect(replica_id, [HOP]) is None


async def test_a_suspect_that_is_too_late_or_not_due_is_let_be(store):
    """An expired suspect is never sent, and one for later not yet."""
    await _suspect(store, expires_at=await now(store) + timedelta(minutes=5))
    await _suspect(store, send_at=await now(store) + timedelta(hours=1))
    await shift_clock(store, timedelta(minutes=5))
    assert await store.claim_suspect(await replica(store), [HOP]) is None


async def test_claimants_at_once_never_share_a_suspect(store):
    """Suspects, too, go to one claimant each."""
    suspects = [await _suspect(store) for _ in range(6)]
    replicas = [await fresh_id(store) for _ in range(8)]
    found = await asyncio.gather(*(store.claim_suspect(replica_id, [HOP]) for replica_id in replicas))
    claimed = [claim.id for claim in found if claim]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) <= set(suspects)


async def test_the_next_due_delivery_is_known(store):
    """The scheduler sleeps exactly until something is due, never longer than it asked, and for ever where none waits."""
    assert await store.next_due_s([(HOP, TRANSACTIONAL)], 60) is None
    await accepted(store, send_at=await now(store) + timedelta(seconds=30))
    wait_s = await store.next_due_s([(HOP, TRANSACTIONAL)], 60)
    assert wait_s is not None
    assert 0 < wait_s <= 30
    assert await store.next_due_s([(HOP, TRANSACTIONAL)], 5) == pytest.approx(5)
    assert await store.next_due_s([("other", TRANSACTIONAL)], 60) is None
    await accepted(store)
    assert await store.next_due_s([(HOP, TRANSACTIONAL)], 60) == 0


async def test_what_waits_in_status_queued_is_claimed_with_its_command(store):
    """A delivery that is not rendered yet brings its command instead of a message."""
    await accepted(store, status=DeliveryStatus.QUEUED, message=None, command=b"{}")
    (claim,) = await store.claim_due(await replica(store), ANY, 1000)
    assert (claim.message, claim.command) == (None, b"{}")


async def test_a_source_of_a_newer_version_is_claimed(store):
    """While a deployment is upgraded, mail of a source that only the newer version knows is sent by the version before, too."""
    await rows(store, "ALTER TABLE mail.deliveries DROP CONSTRAINT deliveries_source_known")
    delivery_id = await accepted(store)
    await rows(store, "UPDATE mail.deliveries SET source = 'pigeon' WHERE id = $1", delivery_id)
    claims = await store.claim_due(await replica(store), ANY, 10)
    assert [(claim.id, claim.source) for claim in claims] == [(delivery_id, "pigeon")]
