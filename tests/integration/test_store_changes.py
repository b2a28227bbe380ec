"""Changes by hand: each verb from where it applies, recorded in its own commit, and nothing that could double a mail."""

import asyncio

import pytest
from queue_kit import (
    MESSAGE,
    accepted,
    attempts,
    check_accounts,
    claim_one,
    delivery,
    ending,
    finished,
    payload,
    replica,
    row,
    rows,
    status,
)

from mailkeep.core.delivery import DeliveryStatus, Guarantee, Source
from mailkeep.core.outcome import RecipientOutcome, Severity
from mailkeep.store.changes import OperatorChanges, Verb

BY = {"actor": "ann", "reason": "because"}
TWO = ("ann@example.org", "bob@example.org")


@pytest.fixture
def changes(store):
    """Offer the verbs over the store."""
    return OperatorChanges(store)


async def held(store, **fields):
    """Accept a delivery under at_most_once and let its outcome be unknown after the dot; return its id."""
    claim = await claim_one(store, guarantee=Guarantee.AT_MOST_ONCE, **fields)
    assert await store.mark_dot([claim]) == {claim.id}
    assert await store.finish([finished(claim, ending(claim, Severity.UNKNOWN))]) == {
        claim.id: DeliveryStatus.HELD
    }
    return claim.id


async def recorded(store, delivery_id):
    """Return what is recorded of a delivery."""
    found = await rows(
        store,
        "SELECT verb, status, actor, reason FROM mail.operator_changes WHERE delivery_id = $1 ORDER BY id",
        delivery_id,
    )
    return [tuple(record) for record in found]


async def test_what_is_held_waits_until_it_is_released(store, changes):
    """A held delivery is claimed by nobody; released it is due at once; both are recorded."""
    delivery_id = await accepted(store)
    assert await changes.change(Verb.HOLD, delivery_id, **BY) is DeliveryStatus.HELD
    assert await store.claim_due(await replica(store), [("default", "transactional", 10)], 10) == []
    assert (await row(store, delivery_id))["last_reason"] == "because"
    assert await changes.change(Verb.RELEASE, delivery_id, **BY) is DeliveryStatus.RENDERED
    (claim,) = await store.claim_due(await replica(store), [("default", "transactional", 10)], 10)
    assert claim.id == delivery_id
    assert await recorded(store, delivery_id) == [
        ("hold", "held", "ann", "because"),
        ("release", "rendered", "ann", "because"),
    ]


async def test_an_unknown_outcome_under_at_most_once_is_never_released(store, changes):
    """Releasing could make a second copy: it is refused; the operator confirms, cancels, or resends knowingly."""
    delivery_id = await held(store)
    assert await changes.change(Verb.RELEASE, delivery_id, **BY) is None
    assert (await status(store, delivery_id), await recorded(store, delivery_id)) == ("held", [])


@pytest.mark.parametrize(
    ("verb", "expected"), [(Verb.CONFIRM, DeliveryStatus.SENT), (Verb.CANCEL, DeliveryStatus.CANCELLED)]
)
async def test_an_unknown_outcome_is_settled_by_hand(store, changes, verb, expected):
    """Confirmed it is sent, dropped it is cancelled; a sensitive one leaves no content, and the accounts agree."""
    delivery_id = await held(store, sensitive=True)
    assert await changes.change(verb, delivery_id, **BY) is expected
    assert await payload(store, delivery_id) is None
    assert len(await attempts(store, delivery_id)) == 1
    await check_accounts(store, [delivery_id])


async def test_a_confirmation_does_not_hide_a_refused_recipient(store, changes):
    """Where another recipient was refused before, a confirmed delivery is `failed`, as everywhere."""
    claim = await claim_one(store, recipients=TWO, guarantee=Guarantee.AT_MOST_ONCE)
    outcome = ending(claim, Severity.UNKNOWN)
    refused = RecipientOutcome(1, Severity.PERMANENT, outcome.scope, "a_rule")
    mixed = type(outcome)(
        **{name: getattr(outcome, name) for name in outcome.__struct_fields__}
        | {"recipients": (outcome.recipients[0], refused)}
    )
    await store.finish([finished(claim, mixed)])
    assert await changes.change(Verb.CONFIRM, claim.id, **BY) is DeliveryStatus.FAILED
    assert (await row(store, claim.id))["recipient_states"] == "sf"


async def test_what_is_being_sent_or_has_ended_is_not_touched(store, changes):
    """No verb moves a delivery that a replica is sending, or one that has ended; nothing is recorded."""
    claim = await claim_one(store)
    before = await row(store, claim.id)
    assert {await changes.change(verb, claim.id, **BY) for verb in Verb} == {None}
    assert await row(store, claim.id) == before
    await store.finish([finished(claim)])
    before = await row(store, claim.id)
    assert {await changes.change(verb, claim.id, **BY) for verb in Verb if verb is not Verb.DELETE} == {None}
    assert (await row(store, claim.id), await recorded(store, claim.id)) == (before, [])
    assert await changes.change(Verb.DELETE, claim.id, **BY) is DeliveryStatus.SENT
    assert await row(store, claim.id) == before
    assert await rows(store, "SELECT FROM mail.payloads") == []


async def test_a_cancel_that_meets_a_claim_changes_nothing_or_everything(store, changes):
    """Cancelling beside a claimant ends in one of both: cancelled and never sent, or sent and not cancelled."""
    ids = [await accepted(store) for _ in range(20)]
    replica_id = await replica(store)
    claims, *cancelled = await asyncio.gather(
        store.claim_due(replica_id, [("default", "transactional", 20)], 20),
        *(changes.change(Verb.CANCEL, delivery_id, **BY) for delivery_id in ids),
    )
    taken = {claim.id for claim in claims}
    assert taken.isdisjoint(key for key, moved in zip(ids, cancelled, strict=True) if moved)
    left = {key for key in ids if await status(store, key) == "rendered"}
    assert len(taken) + sum(map(bool, cancelled)) + len(left) == 20


async def test_a_resend_is_a_new_delivery_of_the_same_bytes(store, changes):
    """It names its parent, has a source of its own, and the same key makes no second one."""
    claim = await claim_one(store)
    await store.finish([finished(claim)])
    first = await changes.resend(claim.id, claim.recipients, key="k", **BY)
    again = await changes.resend(claim.id, claim.recipients, key="k", **BY)
    assert (first.replayed, again.replayed) == (False, True)
    assert first.delivery_id == again.delivery_id
    made = await row(store, first.delivery_id)
    assert (made["source"], made["parent_id"], made["status"]) == (
        Source.OPERATOR_RESEND,
        claim.id,
        "rendered",
    )
    assert (await payload(store, first.delivery_id))["message"] == MESSAGE
    assert await recorded(store, claim.id) == [("resend", "sent", "ann", "because")]
    await check_accounts(store, [claim.id, first.delivery_id])


async def test_a_key_of_another_resend_answers_nothing(store, changes):
    """A key that stands for the resend of one delivery is refused for another."""
    claims = [await claim_one(store) for _ in range(2)]
    await store.finish([finished(claim) for claim in claims])
    assert await changes.resend(claims[0].id, claims[0].recipients, key="k", **BY)
    assert await changes.resend(claims[1].id, claims[1].recipients, key="k", **BY) is None


async def test_a_resend_leaves_out_who_got_it(store, changes):
    """Of two recipients, one of whom got the mail, only the other is addressed, and found by the hash."""
    claim = await claim_one(store, recipients=TWO)
    outcome = ending(claim)
    refused = RecipientOutcome(1, Severity.PERMANENT, outcome.scope, "a_rule")
    mixed = type(outcome)(
        **{name: getattr(outcome, name) for name in outcome.__struct_fields__}
        | {"recipients": (outcome.recipients[0], refused)}
    )
    await store.finish([finished(claim, mixed)])
    made = (await changes.resend(claim.id, TWO, key="k", **BY)).delivery_id
    assert (await payload(store, made))["recipients"] == ["bob@example.org"]
    assert (await row(store, made))["recipient_states"] == "o"
    listed = await rows(store, "SELECT addressed FROM mail.recipients WHERE delivery_id = $1", made)
    # Its header still names who got it before.
    assert sorted(found["addressed"] for found in listed) == [False, True]


async def test_a_held_one_that_is_resent_is_cancelled(store, changes):
    """The new delivery stands for the held one, so that it can't be resolved a second time."""
    delivery_id = await held(store)
    made = (await changes.resend(delivery_id, TWO[:1], key="k", **BY)).delivery_id
    assert (await row(store, delivery_id))["last_reason"] == f"resent as {made}"
    assert await changes.change(Verb.CONFIRM, delivery_id, **BY) is None
    await check_accounts(store, [delivery_id, made])


@pytest.mark.parametrize("verb", [Verb.CANCEL, Verb.CONFIRM, Verb.DELETE, "resend"])
async def test_one_that_a_person_held_can_be_ended(store, changes, verb):
    """What was held keeps the time that it waited for; whatever ends it lets go of that."""
    delivery_id = await accepted(store)
    due_at = (await row(store, delivery_id))["due_at"]
    assert await changes.change(Verb.HOLD, delivery_id, **BY) is DeliveryStatus.HELD
    assert (await row(store, delivery_id))["due_at"] == due_at
    if verb == "resend":
        assert await changes.resend(delivery_id, TWO[:1], key="k", **BY) is not None
    else:
        assert await changes.change(verb, delivery_id, **BY) is not None
    ended = await row(store, delivery_id)
    assert (ended["due_at"], ended["finished_at"] is not None) == (None, True)


async def test_what_waits_or_has_no_content_is_not_resent(store, changes):
    """A waiting delivery is sent anyway, and erased content is gone: neither makes anything."""
    waiting = await accepted(store)
    gone = await claim_one(store, sensitive=True)
    await store.finish([finished(gone)])
    for parent_id in (waiting, gone.id, (await delivery(store)).id):
        assert await changes.resend(parent_id, TWO[:1], key=str(parent_id), **BY) is None
    assert await rows(store, "SELECT FROM mail.operator_changes") == []
