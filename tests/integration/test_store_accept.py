"""Accepting: one commit, one delivery a key under any concurrency, and nobody pays for a neighbour's fault."""

import asyncio
import contextlib
import random
from datetime import timedelta

import asyncpg
import pytest
from queue_kit import (
    MESSAGE,
    accepted,
    attempts,
    blocked_backend,
    check_accounts,
    delivery,
    fresh_id,
    now,
    payload,
    row,
    rows,
    status,
)

from mailkeep.core.delivery import DeliveryStatus, Guarantee, Source
from mailkeep.core.queue import KeyHolder
from mailkeep.store.columns import column
from mailkeep.store.errors import StoreRefusedError, StoreUnavailableError
from mailkeep.store.postgres import Store


async def _count(store, table):
    return (await rows(store, f"SELECT count(*) FROM mail.{table}"))[0][0]


@pytest.mark.parametrize("birth", ["queued", "rendered", "sending", "suppressed"])
async def test_a_delivery_is_kept_whole(store, birth):
    """Delivery, recipients, payload and key are there after the commit, in the status it was born with."""
    replica_id = await fresh_id(store)
    content = {"message": None, "command": b"{}"} if birth == "queued" else {"message": MESSAGE}
    new = await delivery(
        store,
        status=DeliveryStatus(birth),
        recipients=("ann@example.org", "bob@example.org"),
        traceparent=f"00-{'a' * 32}-{'b' * 16}-01",
        template_id="welcome",
        catalog_version="v1",
        locale="en",
        **content,
    )
    assert await store.accept(replica_id, [new]) == [new.id]
    kept = await row(store, new.id)
    assert kept["status"] == birth
    assert kept["recipient_states"] == ("xx" if birth == "suppressed" else "oo")
    assert (kept["claimed_by"], kept["claim_token"]) == ((replica_id, 1) if birth == "sending" else (None, 0))
    assert (kept["due_at"] is not None) == (birth in ("queued", "rendered"))
    assert (kept["finished_at"] is not None) == (birth == "suppressed")
    assert kept["traceparent"] == new.traceparent
    assert (kept["template_id"], kept["catalog_version"], kept["locale"]) == ("welcome", "v1", "en")
    content_kept = await payload(store, new.id)
    assert content_kept is not None
    assert (content_kept["sender"], content_kept["recipients"]) == (new.sender, list(new.recipients))
    assert (content_kept["message"], content_kept["command"]) == (new.message, new.command)
    hashes = await rows(store, "SELECT address_hash FROM mail.recipients WHERE delivery_id = $1", new.id)
    assert {found["address_hash"] for found in hashes} == set(new.recipient_hashes)
    holder = (await store.find_keys([(new.source, new.idempotency_key)]))[new.source, new.idempotency_key]
    assert holder == KeyHolder(new.fingerprint, new.id, DeliveryStatus(birth))
    await check_accounts(store, [new.id])


async def test_what_ends_at_birth_leaves_no_secret(store):
    """In stub mode a login code is never at rest, while other content is kept for its retention."""
    secret = await accepted(store, status=DeliveryStatus.SUPPRESSED, sensitive=True)
    plain = await accepted(store, status=DeliveryStatus.SUPPRESSED)
    assert await payload(store, secret) is None
    assert await payload(store, plain) is not None


@pytest.mark.parametrize("ahead_s", [-60, 60])
async def test_a_delivery_is_due_at_its_time_and_never_before_now(store, ahead_s):
    """`send_at` in the future is kept; one in the past means at once."""
    instant = await now(store)
    delivery_id = await accepted(store, send_at=instant + timedelta(seconds=ahead_s))
    due_at = (await row(store, delivery_id))["due_at"]
    if ahead_s > 0:
        assert due_at == instant + timedelta(seconds=ahead_s)
    else:
        assert instant <= due_at <= await now(store)


async def test_a_repeated_key_is_answered_by_its_holder(store):
    """The second caller learns whose key it is, what was asked first and what was answered; nothing is written."""
    first = await delivery(store, idempotency_key="k", fingerprint=b"1" * 16)
    second = await delivery(store, idempotency_key="k", fingerprint=b"2" * 16)
    assert await store.accept(first.id, [first]) == [first.id]
    holder = KeyHolder(b"1" * 16, first.id, DeliveryStatus.RENDERED)
    assert await store.accept(first.id, [second]) == [holder]
    for table in ("deliveries", "payloads", "recipients", "idempotency_keys"):
        assert await _count(store, table) == 1


async def test_the_first_answer_is_remembered(store):
    """A key answers with the status at birth, whatever became of the delivery since."""
    first = await delivery(store, idempotency_key="k")
    await store.accept(first.id, [first])
    await rows(store, "UPDATE mail.deliveries SET status = 'held', due_at = NULL")
    (answer,) = await store.accept(first.id, [await delivery(store, idempotency_key="k")])
    assert isinstance(answer, KeyHolder)
    assert answer.first_status is DeliveryStatus.RENDERED


async def test_a_key_belongs_to_its_source(store):
    """The same key from two sources is two deliveries."""
    batch = [await delivery(store, idempotency_key="k", source=source) for source in (Source.API, Source.SQL)]
    assert await store.accept(batch[0].id, batch) == [new.id for new in batch]


async def test_duplicates_inside_one_batch(store):
    """Of several with one key in the same statement one is stored, and each other is answered with it, in order."""
    batch = [await delivery(store, idempotency_key=key) for key in ("b", "a", "b", "c", "a", "b")]
    answers = await store.accept(batch[0].id, batch)
    by_key: dict[str, set] = {}
    for new, answer in zip(batch, answers, strict=True):
        by_key.setdefault(new.idempotency_key, set()).add(
            answer.delivery_id if isinstance(answer, KeyHolder) else answer
        )
    assert {key: len(ids) for key, ids in by_key.items()} == {"a": 1, "b": 1, "c": 1}
    assert sum(not isinstance(answer, KeyHolder) for answer in answers) == 3
    await check_accounts(store, [key for ids in by_key.values() for key in ids])


async def test_two_hundred_at_once_with_one_key(store):
    """Under any concurrency one key is one delivery, and every caller is told the same id."""
    batch = [await delivery(store, idempotency_key="k") for _ in range(200)]
    answers = await asyncio.gather(*(store.accept(new.id, [new]) for new in batch))
    ids = {answer.delivery_id if isinstance(answer, KeyHolder) else answer for (answer,) in answers}
    assert len(ids) == 1
    assert sum(not isinstance(answer, KeyHolder) for (answer,) in answers) == 1
    await check_accounts(store, list(ids))


async def test_overlapping_batches_at_once(store):
    """Batches that share their keys in every order neither deadlock nor store one twice."""
    keys = [f"k{number}" for number in range(40)]
    batches = [
        [await delivery(store, idempotency_key=key) for key in (keys[turn:] + keys[:turn])[:30]]
        for turn in range(0, 40, 5)
    ]
    answers = await asyncio.gather(*(store.accept(batch[0].id, batch) for batch in batches))
    holders: dict[str, set] = {}
    for batch, answered in zip(batches, answers, strict=True):
        for new, answer in zip(batch, answered, strict=True):
            holders.setdefault(new.idempotency_key, set()).add(
                answer.delivery_id if isinstance(answer, KeyHolder) else answer
            )
    assert all(len(ids) == 1 for ids in holders.values())
    await check_accounts(store, [key for ids in holders.values() for key in ids])


REFUSED = [
    {"sender": "nul\0@example.org"},
    {"recipients": ("ann\0@example.org",)},
    {"recipients": (), "recipient_hashes": ()},
    {"message": None, "command": None},
    {"idempotency_key": "k" * 256},
    {"source": "imap"},
]


@pytest.mark.parametrize("fields", REFUSED, ids=str)
async def test_what_postgresql_refuses_reserves_nothing(store, fields):
    """A delivery that can't be stored leaves neither key nor rows."""
    new = await delivery(store, **fields)
    assert [type(answer) for answer in await store.accept(new.id, [new])] == [StoreRefusedError]
    for table in ("deliveries", "payloads", "recipients", "idempotency_keys"):
        assert await _count(store, table) == 0


@pytest.mark.parametrize("place", [0, 2, 4])
async def test_a_refused_delivery_does_not_take_its_neighbours(store, place):
    """Wherever the bad one stands in its batch, every other is stored, and it alone is answered with its fault."""
    batch = [await delivery(store) for _ in range(4)]
    bad = await delivery(store, sender="nul\0@example.org")
    answers = await store.accept(bad.id, [*batch[:place], bad, *batch[place:]])
    assert isinstance(answers.pop(place), StoreRefusedError)
    assert answers == [new.id for new in batch]
    await check_accounts(store, [new.id for new in batch])


async def test_an_id_is_used_once(store):
    """A second command under another key can't take over the id of the first."""
    first = await delivery(store, idempotency_key="a")
    await store.accept(first.id, [first])
    second = await delivery(store, id=first.id, idempotency_key="b", message=b"other")
    assert [type(answer) for answer in await store.accept(first.id, [second])] == [StoreRefusedError]
    kept = await payload(store, first.id)
    assert kept is not None
    assert kept["message"] == MESSAGE
    assert await store.find_keys([(Source.API, "b")]) == {}


async def test_a_repeated_id_and_key_in_one_batch_is_one_delivery(store):
    """A producer that sends the same id and key twice at once gets one delivery, and its second call is told so."""
    first = await delivery(store, idempotency_key="k")
    again = await delivery(store, id=first.id, idempotency_key="k", fingerprint=b"2" * 16)
    answers = await store.accept(first.id, [first, again])
    assert answers == [first.id, KeyHolder(first.fingerprint, first.id, DeliveryStatus.RENDERED)]
    await check_accounts(store, [first.id])


async def test_a_newer_delivery_supersedes_the_older_that_was_not_sent(store):
    """Of two login codes for the same purpose and person only the newer is left; one that is being sent is let be."""
    waiting = await accepted(store, supersede_hash=b"one")
    other = await accepted(store, supersede_hash=b"two")
    sending = await accepted(store, supersede_hash=b"one", status=DeliveryStatus.SENDING)
    assert await status(store, waiting) == "cancelled"
    newest = await accepted(store, supersede_hash=b"one")
    assert [await status(store, key) for key in (other, sending, newest)] == [
        "rendered",
        "sending",
        "rendered",
    ]


async def test_superseding_batches_at_once(store):
    """Batches that supersede each other's deliveries in every order are all stored: none of them is a deadlock."""
    order, people = random.Random(1), [f"person {number}".encode() for number in range(60)]
    for _ in range(6):
        batches = [
            [await delivery(store, supersede_hash=one) for one in order.sample(people, len(people))]
            for _ in range(4)
        ]
        answers = await asyncio.gather(*(store.accept(batch[0].id, batch) for batch in batches))
        assert answers == [[new.id for new in batch] for batch in batches]


@pytest.mark.parametrize("value", ["", "\x1e", "a\x1fb"])
def test_a_column_gives_back_what_went_in_or_refuses_it(value):
    """Values travel as one text a column: one that would come out as something else is refused, not changed."""
    with pytest.raises(StoreRefusedError):
        column(["a", value])


async def test_a_commit_that_was_cut_is_in_doubt_and_can_be_asked_for(store, dsn):
    """A connection lost under the statement is raised as in doubt; asking by key tells what became of it."""
    holding = await asyncpg.connect(dsn)
    block = holding.transaction()
    await block.start()
    await holding.execute(
        "INSERT INTO mail.idempotency_keys (source, key, fingerprint, delivery_id, first_status)"
        " VALUES ('api', 'k', '', gen_random_uuid(), 'rendered')"
    )
    new = await delivery(store, idempotency_key="k")
    accepting = asyncio.create_task(store.accept(new.id, [new]))
    await holding.execute("SELECT pg_terminate_backend($1)", await blocked_backend(dsn))
    with pytest.raises(StoreUnavailableError) as caught:
        await accepting
    assert caught.value.in_doubt
    await block.rollback()
    await holding.close()
    assert await store.find_keys([(Source.API, "k")]) == {}
    assert await store.accept(new.id, [new]) == [new.id]
    await check_accounts(store, [new.id])


async def test_a_read_only_store_acknowledges_nothing(store, dsn):
    """On a server that is not promoted yet nothing is accepted, surely; once it is, the same store works again."""
    name = (await rows(store, "SELECT current_database() AS name"))[0]["name"]
    new = await delivery(store)
    await rows(store, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await store._pool.expire_connections()
    with pytest.raises(StoreUnavailableError) as caught:
        await store.accept(new.id, [new])
    assert not caught.value.in_doubt
    promoted = await asyncpg.connect(dsn, server_settings={"default_transaction_read_only": "off"})
    await promoted.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    await promoted.close()
    # Over new connections, which a refusal asks for: one that was made anew before the promotion is refused once more.
    with contextlib.suppress(StoreUnavailableError):
        await store.accept(new.id, [new])
    other = await delivery(store)
    assert await store.accept(other.id, [other]) == [other.id]


async def test_a_server_that_is_not_there_is_unavailable(dsn):
    """A store that can't connect says so, in one kind of error."""
    with pytest.raises(StoreUnavailableError):
        await Store.open(dsn.replace("5432", "5433"), pool_size=1)


async def test_the_guarantee_is_kept(store):
    """`at_most_once` is on the row from the first commit."""
    delivery_id = await accepted(store, guarantee=Guarantee.AT_MOST_ONCE)
    assert (await row(store, delivery_id))["guarantee"] == "at_most_once"
    assert await attempts(store, delivery_id) == []


async def test_a_newer_one_supersedes_what_waits(store):
    """The newer code cancels the older one that is not sent yet, erases it, and leaves other keys and claimed ones alone."""
    old = await accepted(store, supersede_hash=b"ann-login", sensitive=True)
    other = await accepted(store, supersede_hash=b"bob-login", sensitive=True)
    claimed = await accepted(store, supersede_hash=b"ann-login", status=DeliveryStatus.SENDING)
    new = await accepted(store, supersede_hash=b"ann-login", sensitive=True)
    assert [await status(store, key) for key in (old, other, claimed, new)] == [
        "cancelled",
        "rendered",
        "sending",
        "rendered",
    ]
    assert await payload(store, old) is None
    assert await payload(store, new) is not None
    await check_accounts(store, [old, other, claimed, new])
