"""Suppressions in the store: who makes one, what is looked up and when, and that a lost claim makes none."""

import asyncio
from datetime import timedelta
from itertools import product

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from queue_kit import (
    ANY,
    accepted,
    attempts,
    check_accounts,
    claim_one,
    delivery,
    ending,
    finished,
    fresh_id,
    lose,
    now,
    payload,
    replica,
    row,
    rows,
    shift_clock,
    snapshot,
)

from mailkeep.core.delivery import DeliveryStatus
from mailkeep.core.idempotency import address_hash
from mailkeep.core.outcome import Scope, Severity
from mailkeep.core.queue import KeyHolder, Suppressed
from mailkeep.core.suppression import USUAL_TTL_S, NewSuppression, SuppressionReason
from mailkeep.store.retention import Retention
from mailkeep.store.suppressions import Suppressions

ANN, BOB, CYD = "ann@example.org", "bob@example.org", "cyd@example.org"
BOUNCE = {"scope": Scope.RECIPIENT, "suppress": True, "text": "5.1.1 No such user"}
BECAUSE = "manual: left the company"
BY = {"actor": "eve", "note": "is back"}


@pytest.fixture
def listed(store):
    """Offer the suppression list."""
    return Suppressions(store)


async def suppress(store, *addresses, ttl_s=None):
    """Put addresses on the list by hand."""
    batch = [NewSuppression(address, SuppressionReason.MANUAL, "left the company") for address in addresses]
    return await Suppressions(store).add(batch, actor="eve", expires_in_s=ttl_s)


async def bounced(store, address=ANN, ttl_s=USUAL_TTL_S, claim=None):
    """Have a mail server say that an address does not exist; answers the claim."""
    claim = claim or await claim_one(store, recipients=(address,))
    await store.finish([finished(claim, ending(claim, Severity.PERMANENT, **BOUNCE))], ttl_s)
    return claim


async def on_list(store):
    """Return the addresses in force."""
    return sorted(each.address for each in await Suppressions(store).page(1000))


# -- at intake ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [DeliveryStatus.RENDERED, DeliveryStatus.SENDING, DeliveryStatus.QUEUED])
@pytest.mark.parametrize("sensitive", [False, True])
async def test_a_delivery_to_nobody_but_suppressed_ends_at_birth(store, asked, sensitive):
    """It is stored, ended and told so, with the reason; no claim, no attempt, and no secret is left."""
    await suppress(store, ANN)
    content = {"message": None, "command": b"{}"} if asked is DeliveryStatus.QUEUED else {}
    new = await delivery(store, status=asked, sensitive=sensitive, **content)
    assert await store.accept(await replica(store), [new]) == [
        Suppressed(new.id, DeliveryStatus.SUPPRESSED, "x")
    ]
    kept = await row(store, new.id)
    assert (kept["status"], kept["recipient_states"], kept["attempts"]) == ("suppressed", "x", 0)
    assert (kept["claimed_by"], kept["claim_token"], kept["finished_at"] is None) == (None, 0, False)
    assert (kept["last_reason"], kept["last_rule"]) == (
        f"on the suppression list, {BECAUSE}",
        "suppression_list",
    )
    assert kept["suppressed_because"] == [BECAUSE]
    assert (await payload(store, new.id) is None) == sensitive
    assert await store.claim_due(await replica(store), ANY, 10) == []
    await check_accounts(store, [new.id])


async def test_a_repeated_call_is_told_the_same(store, listed):
    """The key remembers `suppressed`, also when the address may have mail again."""
    await suppress(store, ANN)
    first = await delivery(store, idempotency_key="k")
    await store.accept(await fresh_id(store), [first])
    await listed.remove(ANN, **BY)
    second = await delivery(store, idempotency_key="k")
    assert await store.accept(await fresh_id(store), [second]) == [
        KeyHolder(first.fingerprint, first.id, DeliveryStatus.SUPPRESSED)
    ]


async def test_those_who_are_not_suppressed_get_their_mail(store):
    """Only whom the list names is left out, each with its reason; the delivery is claimed at birth as it was to be."""
    await suppress(store, ANN, CYD)
    new = await delivery(store, recipients=(ANN, BOB, CYD), status=DeliveryStatus.SENDING)
    replica_id = await replica(store)
    assert await store.accept(replica_id, [new]) == [Suppressed(new.id, DeliveryStatus.SENDING, "xox")]
    kept = await row(store, new.id)
    assert (kept["status"], kept["claimed_by"], kept["finished_at"]) == ("sending", replica_id, None)
    assert kept["suppressed_because"] == [BECAUSE, None, BECAUSE]


async def test_letter_case_is_no_way_around(store):
    """One mailbox is one address, however it is spelled."""
    await suppress(store, "Ann@example.org")
    assert (await row(store, await accepted(store, recipients=(ANN,))))["status"] == "suppressed"


async def test_what_has_expired_holds_nobody_back(store):
    """A suppression ends by itself, by the database's clock, before anybody has swept it away."""
    await suppress(store, ANN, ttl_s=60)
    await shift_clock(store, timedelta(seconds=61))
    assert (await row(store, await accepted(store)))["status"] == "rendered"
    assert await on_list(store) == []


async def test_stub_mode_stays_stub_mode(store):
    """What is not sent at all is not said to be left out."""
    await suppress(store, ANN)
    new = await delivery(store, recipients=(ANN, BOB), status=DeliveryStatus.SUPPRESSED)
    assert await store.accept(await fresh_id(store), [new]) == [new.id]
    kept = await row(store, new.id)
    assert (kept["status"], kept["recipient_states"], kept["last_reason"]) == ("suppressed", "xx", None)


@given(
    batch=st.lists(
        st.lists(
            st.sampled_from([f"{n}@example.org" for n in range(6)]), min_size=1, max_size=6, unique=True
        ),
        min_size=1,
        max_size=8,
    ),
    names=st.sets(st.integers(0, 5)),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_of_a_batch_is_judged_by_itself(dsn, batch, names):
    """In any batch, each recipient of each delivery is left out if and only if the list names it."""
    from mailkeep.store.postgres import Store

    async def scenario():
        store = await Store.open(dsn, pool_size=1)
        try:
            await rows(store, "TRUNCATE mail.suppressions")
            shut = {f"{name}@example.org" for name in names}
            await suppress(store, *shut)
            news = [await delivery(store, recipients=tuple(recipients)) for recipients in batch]
            answers = await store.accept(await fresh_id(store), news)
            for new, answer in zip(news, answers, strict=True):
                states = "".join("x" if address in shut else "o" for address in new.recipients)
                status = DeliveryStatus.RENDERED if "o" in states else DeliveryStatus.SUPPRESSED
                assert answer == (Suppressed(new.id, status, states) if "x" in states else new.id)
                assert (await row(store, new.id))["recipient_states"] == states
        finally:
            await store.close()

    asyncio.run(scenario())


# -- at the claim ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sensitive", [False, True])
async def test_what_was_suppressed_since_is_not_sent(store, sensitive):
    """A delivery that waited ends without an attempt when its claim finds the address on the list, and its claim is gone."""
    claim = await claim_one(store, sensitive=sensitive)
    assert await store.suppress([claim]) == []
    await suppress(store, ANN)
    assert await store.suppress([claim]) == [Suppressed(claim.id, DeliveryStatus.SUPPRESSED, "x")]
    kept = await row(store, claim.id)
    assert (kept["status"], kept["claimed_by"], kept["attempts"]) == ("suppressed", None, 0)
    assert (kept["last_reason"], kept["suppressed_because"]) == (
        f"on the suppression list, {BECAUSE}",
        [BECAUSE],
    )
    assert (await payload(store, claim.id) is None) == sensitive
    assert await store.finish([finished(claim)]) == {}
    await check_accounts(store, [claim.id])


async def test_the_others_are_still_sent_to(store):
    """Whoever is left keeps the claim alive; earlier reasons stay, and so does what was settled before."""
    await suppress(store, ANN)
    await accepted(store, recipients=(ANN, BOB, CYD))
    (claim,) = await store.claim_due(await replica(store), ANY, 10)
    await suppress(store, CYD)
    (left,) = await store.suppress([claim])
    assert left == Suppressed(claim.id, DeliveryStatus.SENDING, "xox")
    assert (await row(store, claim.id))["suppressed_because"] == [BECAUSE, None, BECAUSE]
    claim.recipient_states = left.recipient_states
    assert await store.finish([finished(claim)]) == {claim.id: DeliveryStatus.SUPPRESSED}
    kept = await row(store, claim.id)
    assert (kept["recipient_states"], kept["last_reason"]) == ("xsx", f"on the suppression list, {BECAUSE}")


async def test_a_refused_recipient_is_not_hidden(store):
    """Where another one was refused for good before, the delivery ends `failed`."""
    claim = await claim_one(store, recipients=(ANN, BOB))
    outcome = ending(claim, Severity.TRANSIENT)
    refused = msgspec.structs.replace(outcome.recipients[0], severity=Severity.PERMANENT)
    outcome = msgspec.structs.replace(outcome, recipients=(refused, outcome.recipients[1]))
    await store.finish([finished(claim, outcome)])
    await shift_clock(store, timedelta(minutes=2))
    (claim,) = await store.claim_due(claim.replica_id, ANY, 10)
    await suppress(store, ANN, BOB)
    assert await store.suppress([claim]) == [Suppressed(claim.id, DeliveryStatus.FAILED, "fx")]


async def test_a_lost_claim_ends_nothing(store):
    """I4: the replica whose claim was taken over changes no row by looking at the list."""
    claim = await claim_one(store)
    await suppress(store, ANN)
    await lose(store, claim.replica_id)
    await store.take_over()
    (other,) = await store.claim_due(await replica(store), ANY, 10)
    assert other.id == claim.id
    before = await snapshot(store)
    for holder, token in ((claim, claim.token), (other, claim.token), (claim, other.token)):
        stale = msgspec.structs.replace(claim, replica_id=holder.replica_id, token=token)
        assert await store.suppress([stale]) == []
    assert await snapshot(store) == before


async def test_claims_without_a_payload_are_passed_over(store):
    """A delivery whose content is gone has nobody to look up; its attempt says what is wrong with it."""
    claim = await claim_one(store)
    await suppress(store, ANN)
    claim.recipients = ()
    assert await store.suppress([claim]) == []


# -- made by attempts --------------------------------------------------------------------------------------------


async def test_a_hard_bounce_suppresses_with_its_evidence(store, listed):
    """The commit that records the attempt suppresses the address, for the given time and with what the server said."""
    claim = await bounced(store, ttl_s=3600.0)
    (made,) = await listed.page(10)
    assert (made.address, made.reason, made.evidence) == (ANN, "hard_bounce", "5.1.1 No such user")
    assert (made.rule, made.delivery_id, made.attempt, made.actor) == ("a_rule", claim.id, 1, None)
    assert made.expires_at is not None
    assert made.expires_at - made.created_at == timedelta(hours=1)
    assert (await row(store, claim.id))["status"] == "failed"
    assert (await row(store, await accepted(store)))["status"] == "suppressed"


async def test_nothing_but_a_hard_answer_about_the_recipient_suppresses(store):
    """Whatever is transient or unknown, or about message, sender, hop, credential or reputation, suppresses nobody."""
    hard = set()
    for number, (scope, severity, says) in enumerate(product(Scope, Severity, (False, True))):
        address = f"{number}@example.org"
        claim = await claim_one(store, recipients=(address,))
        outcome = ending(claim, severity, scope=scope, suppress=says)
        assert claim.id in await store.finish([finished(claim, outcome)])
        if says and severity is Severity.PERMANENT and scope is Scope.RECIPIENT:
            hard.add(address)
    assert set(await on_list(store)) == hard
    assert len(hard) == 1


async def test_only_the_recipient_that_was_refused_is_suppressed(store):
    """What one address met says nothing about the others of the same message."""
    claim = await claim_one(store, recipients=(ANN, BOB))
    outcome = ending(claim, Severity.PERMANENT, **BOUNCE)
    fine = msgspec.structs.replace(outcome.recipients[0], severity=Severity.SUCCESS, suppress=False)
    outcome = msgspec.structs.replace(outcome, recipients=(fine, outcome.recipients[1]))
    await store.finish([finished(claim, outcome)])
    assert await on_list(store) == [BOB]


async def test_a_replica_that_lost_its_claim_suppresses_nobody(store):
    """I4: what a fenced-out replica heard makes no suppression."""
    claim = await claim_one(store)
    await lose(store, claim.replica_id)
    await store.take_over()
    before = await snapshot(store)
    await bounced(store, claim=claim)
    assert await snapshot(store) == before
    assert await on_list(store) == []


async def test_deliveries_that_bounce_together_make_one_suppression(store):
    """Two in one commit, and two in commits at once in either order, agree on one row each; nobody waits for ever."""
    replica_id = await replica(store)
    for _ in range(20):
        for address in (ANN, BOB):
            await accepted(store, recipients=(address,))
    claims = await store.claim_due(replica_id, ANY, 100)
    done = [finished(claim, ending(claim, Severity.PERMANENT, **BOUNCE)) for claim in claims]
    batches = [done[n : n + 4] if n % 8 else done[n : n + 4][::-1] for n in range(0, 40, 4)]
    ended = await asyncio.gather(*map(store.finish, batches))
    assert sum(map(len, ended)) == 40
    assert await on_list(store) == [ANN, BOB]
    await check_accounts(store, [claim.id for claim in claims])


async def test_a_second_bounce_lasts_longer_and_a_person_has_the_last_word(store, listed):
    """A later bounce renews what bounces made; it leaves alone what a person made, until that has expired."""
    first, second = await claim_one(store), await claim_one(store)
    await bounced(store, claim=first, ttl_s=3600.0)
    (made,) = await listed.page(10)
    await bounced(store, claim=second, ttl_s=7200.0)
    (renewed,) = await listed.page(10)
    assert (renewed.suppression_id, renewed.delivery_id) == (made.suppression_id, second.id)
    assert renewed.created_at == made.created_at
    assert renewed.expires_at > made.expires_at

    third, fourth = await claim_one(store, recipients=(BOB,)), await claim_one(store, recipients=(BOB,))
    await suppress(store, BOB, ttl_s=60)
    await bounced(store, claim=third)
    assert (await listed.page(10, address=BOB))[0].reason == "manual"
    await shift_clock(store, timedelta(seconds=61))
    await bounced(store, claim=fourth)
    (replaced,) = await listed.page(10, address=BOB)
    assert (replaced.reason, replaced.actor, replaced.delivery_id) == ("hard_bounce", None, fourth.id)
    assert replaced.created_at > await now(store) - timedelta(seconds=30)


async def test_a_bounce_beside_mail_in_flight_holds_from_the_next_look(store):
    """A delivery that is being sent when another to the same address bounces ends as its own answer says; the next is not sent."""
    in_flight, bouncing = await claim_one(store), await claim_one(store)
    await bounced(store, claim=bouncing)
    assert await store.finish([finished(in_flight, ending(in_flight, Severity.TRANSIENT))]) == {
        in_flight.id: DeliveryStatus.RENDERED
    }
    await shift_clock(store, timedelta(minutes=2))
    (again,) = await store.claim_due(in_flight.replica_id, ANY, 10)
    assert await store.suppress([again]) == [Suppressed(again.id, DeliveryStatus.SUPPRESSED, "x")]
    assert len(await attempts(store, again.id)) == 1


# -- by hand, and after their time ----------------------------------------------------------------------------------


async def test_changes_by_hand_are_recorded_without_the_address(store, listed):
    """Who added and who removed stands beside the address's hash; the address stands nowhere but on the list."""
    await suppress(store, ANN)
    removed = await listed.remove(ANN, **BY)
    assert removed is not None
    assert (removed.address, removed.actor) == (ANN, "eve")
    assert await listed.remove(ANN, **BY) is None
    found = await rows(
        store, "SELECT address_hash, delivery_id, verb, actor, reason FROM mail.operator_changes ORDER BY id"
    )
    digest = address_hash(ANN, store.hash_key)
    assert sorted(map(tuple, found)) == [
        (digest, None, "suppress", "eve", "left the company"),
        (digest, None, "unsuppress", "eve", "is back"),
    ]
    assert (await row(store, await accepted(store)))["status"] == "rendered"


async def test_a_suppression_is_removed_by_its_id(store, listed):
    """The id names one and no other."""
    await suppress(store, ANN, BOB)
    (ann,) = await listed.page(10, address=ANN)
    assert await listed.remove(ann.suppression_id, **BY) == ann
    assert await listed.remove(await fresh_id(store), **BY) is None
    assert await on_list(store) == [BOB]


async def test_adding_again_changes_nothing_and_never_shortens(store):
    """The same list twice is the same list; only what lasts longer replaces what is there."""
    assert await suppress(store, ANN, BOB, ANN) == 2
    assert await suppress(store, ANN, BOB) == 0
    assert await suppress(store, ANN, ttl_s=60) == 0
    assert await suppress(store, CYD, ttl_s=60) == 1
    assert await suppress(store, CYD, ttl_s=30) == 0
    assert await suppress(store, CYD) == 1
    assert (await rows(store, "SELECT count(*) FROM mail.operator_changes"))[0][0] == 4
    past = NewSuppression("old@example.org", SuppressionReason.COMPLAINT, "why", await now(store))
    assert await Suppressions(store).add([past], actor="eve") == 0


async def test_pages_follow_each_other(store, listed):
    """Every suppression in force is on one page, the newest first, by reason where one is asked for."""
    await suppress(store, *(f"{n}@example.org" for n in range(25)))
    await bounced(store)
    seen, before = [], None
    while page := await listed.page(10, before=before):
        seen += page
        before = page[-1].suppression_id
    ids = [each.suppression_id for each in seen]
    assert len({each.address for each in seen}) == len(seen) == 26
    assert ids == sorted(ids, reverse=True)
    assert [each.address for each in await listed.page(50, reason=SuppressionReason.HARD_BOUNCE)] == [ANN]


async def test_retention_removes_what_has_expired(store, monkeypatch):
    """Expired suppressions go, in batches; what is in force or has no end stays."""
    monkeypatch.setattr("mailkeep.store.retention.DELETE_BATCH", 3)
    await suppress(store, *(f"{n}@example.org" for n in range(10)), ttl_s=60)
    await suppress(store, ANN)
    await suppress(store, BOB, ttl_s=3600)
    await shift_clock(store, timedelta(seconds=61))
    day_s = 86_400.0
    sweeping = Retention(store, delivery_s=day_s, payload_s=day_s, key_s=day_s, malformed_s=day_s)
    assert (await sweeping.sweep()).suppressions_deleted == 10
    kept = await rows(store, "SELECT address FROM mail.suppressions ORDER BY 1")
    assert [each["address"] for each in kept] == [ANN, BOB]
