"""Finishing: what came of an attempt is written once, by the holder of the claim, in one commit."""

from datetime import timedelta
from uuid import UUID

import msgspec
import pytest
from queue_kit import (
    ANY,
    HOP,
    MESSAGE,
    accepted,
    attempts,
    check_accounts,
    claim_one,
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
    status,
)

from mailkeep.core.delivery import DeliveryStatus, Guarantee
from mailkeep.core.outcome import Phase, Scope, Severity, Step
from mailkeep.core.queue import ClaimKey
from mailkeep.store.errors import StoreRefusedError

ENDINGS = {
    "sent": (Severity.SUCCESS, {}, (60.0,), Guarantee.AT_LEAST_ONCE),
    "failed": (Severity.PERMANENT, {"scope": Scope.RECIPIENT}, (60.0,), Guarantee.AT_LEAST_ONCE),
    "suppressed": (
        Severity.PERMANENT,
        {"scope": Scope.REPUTATION, "suppress": True},
        (60.0,),
        Guarantee.AT_LEAST_ONCE,
    ),
    "rendered": (Severity.TRANSIENT, {}, (60.0,), Guarantee.AT_LEAST_ONCE),
    "dead_letter": (Severity.TRANSIENT, {}, (), Guarantee.AT_LEAST_ONCE),
    "held": (Severity.UNKNOWN, {}, (60.0,), Guarantee.AT_MOST_ONCE),
}


@pytest.mark.parametrize("sensitive", [False, True])
@pytest.mark.parametrize("after", ENDINGS)
async def test_each_ending_is_recorded_whole(store, after, sensitive):
    """Status, attempt, dead letter and erasure of a finished attempt are one commit."""
    severity, verdict, ladder_s, guarantee = ENDINGS[after]
    claim = await claim_one(store, guarantee=guarantee, sensitive=sensitive)
    outcome = ending(claim, severity, text="4.3.2 later", **verdict)
    assert await store.finish([finished(claim, outcome, ladder_s=ladder_s)]) == {
        claim.id: DeliveryStatus(after)
    }
    kept = await row(store, claim.id)
    assert (kept["status"], kept["claimed_by"], kept["attempts"]) == (after, None, 1)
    assert kept["rungs_used"] == (after == "rendered")
    ended = after not in ("rendered", "held")
    assert (kept["finished_at"] is not None) == ended
    assert (await payload(store, claim.id) is None) == (sensitive and ended)
    (attempt,) = await attempts(store, claim.id)
    assert (attempt["number"], attempt["status"], attempt["certainty"]) == (
        1,
        outcome.status,
        outcome.certainty,
    )
    assert (attempt["replica_id"], attempt["claim_token"], attempt["next_hop"]) == (claim.replica_id, 1, HOP)
    assert (attempt["phase"], attempt["rule"], attempt["reply"]) == (outcome.phase, "a_rule", "4.3.2 later")
    assert attempt["finished_at"] - attempt["started_at"] == timedelta(milliseconds=12.5)
    await check_accounts(store, [claim.id])


async def test_a_retry_is_due_after_its_wait(store):
    """The wait counts from the end of the attempt, by the database's clock."""
    claim = await claim_one(store)
    before = await now(store)
    await store.finish([finished(claim, ending(claim, Severity.TRANSIENT), ladder_s=(60.0,))])
    due_at = (await row(store, claim.id))["due_at"]
    assert timedelta(seconds=60) <= due_at - before <= timedelta(seconds=60) + (await now(store) - before)


@pytest.mark.parametrize("sensitive", [False, True])
async def test_a_retry_past_its_time_expires(store, sensitive):
    """A delivery whose next attempt would come too late ends now, with its secret."""
    claim = await claim_one(store, expires_at=await now(store) + timedelta(seconds=30), sensitive=sensitive)
    retry = finished(claim, ending(claim, Severity.TRANSIENT), ladder_s=(60.0,))
    assert await store.finish([retry]) == {claim.id: DeliveryStatus.EXPIRED}
    kept = await row(store, claim.id)
    assert (kept["due_at"], kept["finished_at"] is not None) == (None, True)
    assert (await payload(store, claim.id) is None) == sensitive
    await check_accounts(store, [claim.id])


@pytest.mark.parametrize("after", ["sent", "held"])
async def test_what_was_done_in_time_is_not_expired_by_recording_it(store, after):
    """Only a wait can end in `expired`: what is known, or what a person must decide, is written as it is."""
    severity, verdict, ladder_s, guarantee = ENDINGS[after]
    claim = await claim_one(store, guarantee=guarantee, expires_at=await now(store) + timedelta(seconds=30))
    await shift_clock(store, timedelta(minutes=1))
    attempt = finished(claim, ending(claim, severity, **verdict), ladder_s=ladder_s)
    assert await store.finish([attempt]) == {claim.id: DeliveryStatus(after)}


async def test_attempts_are_numbered_and_the_bytes_stay(store):
    """Attempt after attempt gets the next number; the message is the same each time."""
    claim = await claim_one(store)
    for number in range(1, 4):
        assert claim.message == MESSAGE
        assert claim.attempts == number - 1
        await store.finish([finished(claim, ending(claim, Severity.TRANSIENT), ladder_s=(60.0,) * 9)])
        await shift_clock(store, timedelta(minutes=2))
        (claim,) = await store.claim_due(claim.replica_id, ANY, 1000)
        assert claim.token == number + 1
    assert [attempt["number"] for attempt in await attempts(store, claim.id)] == [1, 2, 3]


async def test_each_recipient_is_kept_where_they_differ(store):
    """Outcomes and steps of an attempt are stored as they were; one plain success needs no more than the attempt."""
    claim = await claim_one(store, recipients=("a@b.org", "c@d.org"))
    outcome = ending(claim, Severity.TRANSIENT)
    recipients = (
        msgspec.structs.replace(outcome.recipients[0], severity=Severity.SUCCESS),
        outcome.recipients[1],
    )
    step = Step(Phase.RCPT, "RCPT TO:<…>", "450 later", 3.5)
    attempt = finished(claim, msgspec.structs.replace(outcome, recipients=recipients, steps=(step,)))
    await store.finish([attempt])
    assert (await row(store, claim.id))["recipient_states"] == "so"
    (kept,) = await attempts(store, claim.id)
    assert msgspec.json.decode(kept["recipients"])[0]["severity"] == "success"
    assert msgspec.json.decode(kept["steps"], type=tuple[Step, ...]) == (step,)


async def test_bytes_that_an_attempt_fixed_replace_the_command(store):
    """A delivery rendered by its first attempt keeps those bytes, and no longer the command."""
    await accepted(store, status=DeliveryStatus.QUEUED, message=None, command=b"{}")
    (claim,) = await store.claim_due(await replica(store), ANY, 1000)
    retry = msgspec.structs.replace(finished(claim, ending(claim, Severity.TRANSIENT)), message=b"fixed")
    assert await store.finish([retry]) == {claim.id: DeliveryStatus.RENDERED}
    kept = await payload(store, claim.id)
    assert kept is not None
    assert (kept["message"], kept["command"]) == (b"fixed", None)


async def test_a_recorded_attempt_ends_a_row_of_takeovers(store):
    """Only takeovers without an attempt between them make a suspect."""
    claim = await claim_one(store)
    await rows(store, "UPDATE mail.deliveries SET takeovers = 2")
    await store.finish([finished(claim, ending(claim, Severity.TRANSIENT))])
    assert (await row(store, claim.id))["takeovers"] == 0


# -- fencing ----------------------------------------------------------------------------------------------------


async def _reclaimed(store, how):
    """Return a claim that was lost, its delivery being claimed anew by somebody."""
    if how == "handed back":
        claim = await claim_one(store)
        await store.hand_back([claim])
        await store.claim_due(claim.replica_id, ANY, 1000)
    elif how == "taken over":
        claim = await claim_one(store)
        await lose(store, claim.replica_id)
        await store.take_over()
        await store.claim_due(await replica(store), ANY, 1000)
    else:
        claim = await claim_one(store)
        await rows(store, "UPDATE mail.deliveries SET claimed_by = $1", await replica(store))
    return claim


async def _finish(store, claim):
    return set(await store.finish([finished(claim)]))


async def _bury(store, claim):
    return set(await store.finish([finished(claim, ending(claim, Severity.TRANSIENT), ladder_s=())]))


VERBS = {
    "finish": _finish,
    "bury": _bury,
    "mark_dot": lambda store, claim: store.mark_dot([claim]),
    "hand_back": lambda store, claim: store.hand_back([claim]),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("how", ["handed back", "taken over", "same token, other replica"])
async def test_a_lost_claim_changes_nothing(store, verb, how):
    """I4: whatever a replica says about a claim that it lost, not one row of any table changes."""
    claim = await _reclaimed(store, how)
    before = await snapshot(store)
    assert await VERBS[verb](store, claim) == set()
    assert await snapshot(store) == before


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("after", ENDINGS)
async def test_what_is_finished_is_finished(store, verb, after):
    """I8 of the failure list: after an attempt was recorded, recording it again, or anything else, changes nothing."""
    severity, verdict, ladder_s, guarantee = ENDINGS[after]
    claim = await claim_one(store, guarantee=guarantee)
    attempt = finished(claim, ending(claim, severity, **verdict), ladder_s=ladder_s)
    await store.finish([attempt])
    before = await snapshot(store)
    assert await store.finish([attempt]) == {}
    assert await VERBS[verb](store, claim) == set()
    assert await snapshot(store) == before


async def test_a_batch_records_those_that_hold_and_names_them(store):
    """Lost claims in a batch are missing in the answer; the others are recorded."""
    held, lost = await claim_one(store), await claim_one(store)
    await store.hand_back([lost])
    assert await store.finish([finished(lost), finished(held)]) == {held.id: DeliveryStatus.SENT}
    assert await status(store, lost.id) == "rendered"
    assert await attempts(store, lost.id) == []


@pytest.mark.parametrize("token", [0, 2])
async def test_another_token_is_another_claim(store, token):
    """Neither an older nor a newer token than that of the row does anything."""
    claim = await claim_one(store)
    key = ClaimKey(claim.replica_id, claim.id, token)
    assert await store.hand_back([key]) == set()
    assert await store.mark_dot([key]) == set()
    assert await status(store, claim.id) == "sending"


# -- hand back, marks, own claims -------------------------------------------------------------------------------


@pytest.mark.parametrize("birth", ["rendered", "queued"])
async def test_a_claim_given_back_is_due_at_once(store, birth):
    """What was not begun waits again in the status it had, without an attempt, for anybody."""
    content = {"message": None, "command": b"{}"} if birth == "queued" else {}
    delivery_id = await accepted(store, status=DeliveryStatus(birth), **content)
    (claim,) = await store.claim_due(await replica(store), ANY, 1000)
    assert await store.hand_back([claim]) == {delivery_id}
    kept = await row(store, delivery_id)
    assert (kept["status"], kept["claimed_by"], kept["attempts"], kept["takeovers"]) == (birth, None, 0, 0)
    (again,) = await store.claim_due(await replica(store), ANY, 1000)
    assert (again.id, again.token) == (delivery_id, 2)


async def test_a_claim_at_birth_can_be_given_back(store):
    """A delivery that was born claimed waits like any other once its replica gives it back."""
    replica_id = await replica(store)
    delivery_id = await accepted(store, replica_id, status=DeliveryStatus.SENDING)
    assert await store.hand_back([ClaimKey(replica_id, delivery_id, 1)]) == {delivery_id}
    assert await status(store, delivery_id) == "rendered"


async def test_the_mark_before_the_dot_is_committed(store):
    """The intent to send the dot is on the row, and the claim stays what it was."""
    claim = await claim_one(store, guarantee=Guarantee.AT_MOST_ONCE)
    assert (await row(store, claim.id))["dot_at"] is None
    assert await store.mark_dot([claim]) == {claim.id}
    kept = await row(store, claim.id)
    assert (kept["dot_at"] is not None, kept["status"], kept["claim_token"]) == (True, "sending", claim.token)


async def test_an_answer_before_the_dot_clears_the_mark(store):
    """A deferral after the mark says that nothing was sent: the next attempt begins without one."""
    claim = await claim_one(store, guarantee=Guarantee.AT_MOST_ONCE)
    await store.mark_dot([claim])
    await store.finish([finished(claim, ending(claim, Severity.TRANSIENT))])
    assert (await row(store, claim.id))["dot_at"] is None


async def test_a_claim_given_back_after_its_mark_was_not_sent(store):
    """Who gives back a marked claim says that its dot did not leave: a later loss before the dot is no unknown outcome."""
    claim = await claim_one(store, guarantee=Guarantee.AT_MOST_ONCE)
    await store.mark_dot([claim])
    await store.hand_back([claim])
    other = await replica(store)
    await store.claim_due(other, ANY, 1000)
    await lose(store, other)
    assert await store.take_over() == {claim.id: DeliveryStatus.RENDERED}


async def test_own_claims_are_those_of_the_replica_that_are_old_enough(store):
    """A replica sees what the table holds in its name, with tokens, once it had time to appear in memory."""
    replica_id = await replica(store)
    claim = await claim_one(store, replica_id)
    await claim_one(store)
    assert await store.own_claims(replica_id, 10.0) == {}
    await shift_clock(store, timedelta(seconds=11))
    assert await store.own_claims(replica_id, 10.0) == {claim.id: claim.token}
    await store.finish([finished(claim)])
    assert await store.own_claims(replica_id, 10.0) == {}


async def test_a_refused_record_changes_nothing(store):
    """What PostgreSQL can't store is refused as data, not as an outage, and its delivery stays claimed."""
    claim = await claim_one(store)
    before = await snapshot(store)
    with pytest.raises(StoreRefusedError):
        await store.finish([finished(claim, ending(claim, text="nul \0 in a reply"))])
    assert await snapshot(store) == before


async def test_a_record_of_a_delivery_that_is_gone_is_no_fault(store):
    """An attempt for a row that does not exist is a lost claim like any other."""
    claim = await claim_one(store)
    ghost = msgspec.structs.replace(claim, id=await fresh_id(store))
    assert await store.finish([finished(ghost)]) == {}


async def test_attempts_of_several_days_are_recorded_together(store):
    """A batch touches the days of all its deliveries: those that waited since yesterday, and those of a moment ago."""
    await store.ensure_partitions()
    today = await fresh_id(store)
    replica_id = await replica(store)
    yesterday = UUID(int=today.int - (86_400_000 << 80))
    claims = [await claim_one(store, replica_id, id=delivery_id) for delivery_id in (yesterday, today)]
    assert await store.finish([finished(claim, ending(claim, Severity.SUCCESS)) for claim in claims]) == {
        yesterday: DeliveryStatus.SENT,
        today: DeliveryStatus.SENT,
    }
