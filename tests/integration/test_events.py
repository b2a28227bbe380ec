"""Events: one for each delivery that comes to rest, in its own commit, and read so that none is ever missed."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest
from queue_kit import (
    accepted,
    claim_one,
    delivery,
    ending,
    finished,
    lose,
    replica,
    rows,
    shift_clock,
)

from mailkeep.core.delivery import DeliveryStatus, Guarantee, Source
from mailkeep.core.event import BEGINNING, EVENT_STATUSES, Cursor, parse_types
from mailkeep.core.outcome import Severity
from mailkeep.core.suppression import NewSuppression, SuppressionReason
from mailkeep.store.changes import OperatorChanges, Verb
from mailkeep.store.errors import StoreRefusedError
from mailkeep.store.events import Events
from mailkeep.store.postgres import Store
from mailkeep.store.retention import Retention
from mailkeep.store.suppressions import Suppressions

S = DeliveryStatus
BY = {"actor": "ann", "reason": "because"}


async def told(store, after=BEGINNING, **options):
    """Return what the events say, in order: delivery, status."""
    page = await Events(store).page(after, 1000, **options)
    return [(stored.event.data.delivery_id, stored.event.data.status) for stored in page.events]


async def settled(store, severity=Severity.SUCCESS, **fields):
    """Accept a delivery and finish its attempt so; return its id."""
    claim = await claim_one(store, **fields)
    await store.finish([finished(claim, ending(claim, severity), ladder_s=())])
    return claim.id


async def test_each_rest_is_told_once_with_its_facts(store):
    """Sent, failed, dead letter, held, expired, cancelled, superseded, suppressed at birth and later: one event each."""
    changes = OperatorChanges(store)
    expected = [
        (await settled(store, idempotency_key="order-1"), S.SENT),
        (await settled(store, Severity.PERMANENT), S.FAILED),
        (await settled(store, Severity.TRANSIENT), S.DEAD_LETTER),
        (held := await settled(store, Severity.UNKNOWN, guarantee=Guarantee.AT_MOST_ONCE), S.HELD),
        (await accepted(store, status=S.SUPPRESSED), S.SUPPRESSED),
        (await accepted(store, supersede_hash=b"h" * 12), S.CANCELLED),
    ]
    await accepted(store, supersede_hash=b"h" * 12)
    await changes.change(Verb.CONFIRM, held, **BY)
    cancelled = await accepted(store)
    await changes.change(Verb.CANCEL, cancelled, **BY)
    late = await accepted(store, expires_at=(await rows(store, "SELECT mail.now() AS now"))[0]["now"])
    await store.expire_due()
    await Suppressions(store).add(
        [NewSuppression("gone@example.org", SuppressionReason.MANUAL, "left")], actor="ann", expires_in_s=None
    )
    listed = await accepted(store, recipients=("gone@example.org",))
    expected += [(held, S.SENT), (cancelled, S.CANCELLED), (late, S.EXPIRED), (listed, S.SUPPRESSED)]
    assert await told(store) == expected
    assert {status for _, status in expected} == EVENT_STATUSES
    first, second, third = [stored.event for stored in (await Events(store).page(BEGINNING, 3)).events]
    assert (first.type, first.data.source, first.data.delivery_class, first.data.attempts) == (
        "delivery.sent",
        "api",
        "transactional",
        1,
    )
    assert (first.data.idempotency_key, second.data.idempotency_key) == ("order-1", None)
    assert (second.data.rule, third.data.cause) == ("a_rule", "ladder_exhausted")


async def test_what_moves_without_coming_to_rest_is_not_told(store):
    """Acceptance, a claim, a retry, a flush, a release, and deleting what has ended write no event."""
    changes = OperatorChanges(store)
    claim = await claim_one(store)
    await store.finish([finished(claim, ending(claim, Severity.TRANSIENT))])
    await store.fetch("flush_one", claim.id, "test", "flushed")
    assert await told(store) == []
    await changes.change(Verb.HOLD, claim.id, **BY)
    await changes.change(Verb.RELEASE, claim.id, **BY)
    await changes.change(Verb.CANCEL, claim.id, **BY)
    await changes.change(Verb.DELETE, claim.id, **BY)
    assert await told(store) == [(claim.id, S.HELD), (claim.id, S.CANCELLED)]


async def test_poison_and_resent_ones_are_told(store):
    """A third takeover in a row is told as a dead letter; a resend names its parent."""
    claim = await claim_one(store)
    for _ in range(2):
        await lose(store, claim.replica_id)
        await store.take_over()
        again = (
            await store.claim_suspect(await replica(store), ["default"])
            or (await store.claim_due(await replica(store), [("default", "transactional", 1)], 1))[0]
        )
        claim = again
    await lose(store, claim.replica_id)
    await store.take_over()
    (stored,) = (await Events(store).page(BEGINNING, 10)).events
    assert (stored.event.data.status, stored.event.data.cause) == (S.DEAD_LETTER, "poison")
    made = await OperatorChanges(store).resend(claim.id, ("ann@example.org",), key="k", **BY)
    (claim,) = await store.claim_due(await replica(store), [("default", "transactional", 1)], 1)
    await store.finish([finished(claim)])
    last = (await Events(store).page(stored.cursor, 10)).events[0].event.data
    assert (last.delivery_id, last.parent_id, last.idempotency_key) == (
        made.delivery_id,
        stored.event.data.delivery_id,
        "k",
    )
    assert last.source == Source.OPERATOR_RESEND


async def test_a_change_that_is_rolled_back_is_not_told(store):
    """Neither is there an event without its change, nor a change without its event: they are one commit."""
    claim = await claim_one(store)
    async with store.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            "UPDATE mail.deliveries SET status = 'cancelled', finished_at = mail.now(), claimed_by = NULL,"
            " claimed_at = NULL WHERE id = $1",
            claim.id,
        )
        assert await connection.fetchval("SELECT count(*) FROM mail.events") == 1
        await transaction.rollback()
    assert await told(store) == []
    async with store.connection() as connection:
        await connection.execute(
            "ALTER TABLE mail.events ADD CONSTRAINT nothing_fits CHECK (false) NOT VALID"
        )
    with pytest.raises(StoreRefusedError):
        await store.finish([finished(claim)])
    assert (await rows(store, "SELECT status FROM mail.deliveries"))[0]["status"] == "sending"


async def test_a_transaction_that_commits_late_is_not_passed_over(store, dsn):
    """The one that drew its ids first commits last: by ids alone its event would be missed, by the cursor it is not."""
    first, second = await accepted(store), await accepted(store)
    late = await asyncpg.connect(dsn)
    try:
        transaction = late.transaction()
        await transaction.start()
        cancel = "UPDATE mail.deliveries SET status = 'cancelled', finished_at = mail.now(), due_at = NULL WHERE id = $1"
        await late.execute(cancel, first)
        await rows(store, cancel, second)
        naive = await rows(store, "SELECT delivery_id, id FROM mail.events ORDER BY id")
        page = await Events(store).page(BEGINNING, 10)
        await transaction.commit()
    finally:
        await late.close()
    after_naive = await rows(store, "SELECT delivery_id FROM mail.events WHERE id > $1", naive[-1]["id"])
    assert ([row["delivery_id"] for row in naive], after_naive) == ([second], [])  # the first is never seen
    assert page.events == ()
    assert await told(store, page.after) == [(first, S.CANCELLED), (second, S.CANCELLED)]


async def test_readers_beside_writers_miss_nothing(store, dsn):
    """While many commit, a reader that goes on from page to page sees each event once."""
    other = await Store.open(dsn, pool_size=4)
    seen, ids, cursor = [], [], BEGINNING

    async def write():
        for _ in range(15):
            delivery_id = await accepted(other)
            await OperatorChanges(other).change(Verb.CANCEL, delivery_id, **BY)
            ids.append(delivery_id)

    try:
        writers = asyncio.gather(*(write() for _ in range(4)))
        while True:
            ended = writers.done()
            page = await Events(store).page(cursor, 7)
            seen += [stored.event.data.delivery_id for stored in page.events]
            cursor = page.after
            if ended and not page.events:
                break
        await writers
    finally:
        await other.close()
    assert sorted(seen) == sorted(ids)


async def test_pages_follow_each_other_by_type(store):
    """Filtered pages reach the end in bounded steps, and the cursor of an empty one does not go back."""
    ids = [await accepted(store, status=S.SUPPRESSED) for _ in range(5)]
    sent = await settled(store)
    assert await told(store, statuses=parse_types(("delivery.sent",))) == [(sent, S.SENT)]
    page = await Events(store).page(BEGINNING, 2, frozenset({S.SUPPRESSED}))
    assert [stored.event.data.delivery_id for stored in page.events] == ids[:2]
    end = await Events(store).page(page.after, 10, frozenset({S.FAILED}))
    assert (end.events, await Events(store).page(end.after, 10)) == ((), type(end)((), end.after))
    last = await Events(store).before_last(2)
    assert await told(store, last) == [(ids[4], S.SUPPRESSED), (sent, S.SENT)]
    assert await Events(store).before_last(100) == BEGINNING
    assert Cursor.parse(str(page.after)) == page.after


@pytest.mark.parametrize(
    "text", ["", "x", "1", "1-2-3", "-1", "1-g", "ffffffffffffffff-1", "1-0000000000000000000"]
)
def test_what_is_no_cursor_is_refused(text):
    """A cursor is what a page gave, in the range of the table."""
    with pytest.raises(ValueError, match="no cursor"):
        Cursor.parse(text)


async def test_a_restored_dump_goes_on_after_its_last_event(store, dsn):
    """In a cluster whose transactions have lower ids than those of the dump, new events come after the old ones."""
    before = await accepted(store, status=S.SUPPRESSED)
    await rows(store, "UPDATE mail.events SET position = position + 1000000000")
    assert await told(store) == []  # as if it were still to come
    again = await Store.open(dsn, pool_size=1)
    await again.close()
    assert await told(store) == [(before, S.SUPPRESSED)]
    cursor = (await Events(store).page(BEGINNING, 10)).after
    after = await accepted(store, status=S.SUPPRESSED)
    assert await told(store, cursor) == [(after, S.SUPPRESSED)]
    shift = (await rows(store, "SELECT position_shift FROM mail.deployment"))[0]["position_shift"]
    again = await Store.open(dsn, pool_size=1)
    await again.close()
    assert (await rows(store, "SELECT position_shift FROM mail.deployment"))[0]["position_shift"] == shift


async def test_events_leave_with_their_deliveries(store):
    """Retention drops a day's events with its deliveries, and events of a deleted delivery are not read."""
    await accepted(store, status=S.SUPPRESSED)
    waiting = await delivery(store)
    await store.accept(await replica(store), [waiting])
    await shift_clock(store, timedelta(days=40))
    retention = Retention(
        store, delivery_s=86_400.0, payload_s=86_400.0, key_s=86_400.0, malformed_s=86_400.0
    )
    await retention.sweep()
    assert await told(store) == []  # its day is kept by the one that waits
    await OperatorChanges(store).change(Verb.CANCEL, waiting.id, **BY)
    assert await told(store) == [(waiting.id, S.CANCELLED)]
    await shift_clock(store, timedelta(days=40))
    assert (await retention.sweep()).days_dropped >= 1
    assert await rows(store, "SELECT FROM mail.events") == []
