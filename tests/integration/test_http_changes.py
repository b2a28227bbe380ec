"""Changes by hand over HTTP: hold, release, cancel, confirm, resend, each with who and why."""

import asyncpg
import pytest
from http_kit import DELIVERIES
from test_http_operator import DEFERRED, accept, scheduled

WHY = {"reason": "wrong price", "actor": "ann"}
UNKNOWN = "01a20320-0000-7000-8000-000000000000"


async def change(served, delivery_id, verb, why=WHY, key=None):
    """Ask for a change and return status and body."""
    answer = await served.post(f"{DELIVERIES}/{delivery_id}/{verb}", why, key)
    return answer.status_code, answer.json()


async def test_a_delivery_is_held_released_and_cancelled(sending, dsn):
    """Each verb answers where the delivery stands now, and is recorded with who and why."""
    delivery_id = await scheduled(sending)
    for verb, status in (("hold", "held"), ("cancel", "cancelled")):
        assert await change(sending, delivery_id, verb) == (
            200,
            {"delivery_id": delivery_id, "status": status},
        )
    held = await scheduled(sending)
    due_at = (await sending.get(f"{DELIVERIES}/{held}")).json()["due_at"]
    await change(sending, held, "hold")
    assert await change(sending, held, "release", {"reason": "right after all"}) == (
        200,
        {"delivery_id": held, "status": "rendered"},
    )
    assert (await sending.get(f"{DELIVERIES}/{held}")).json()["due_at"] == due_at  # its time stays
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT verb, actor, reason FROM mail.operator_changes ORDER BY id")
    finally:
        await connection.close()
    assert [tuple(row) for row in rows] == [
        ("hold", "ann", "wrong price"),
        ("cancel", "ann", "wrong price"),
        ("hold", "ann", "wrong price"),
        ("release", "api", "right after all"),
    ]


@pytest.mark.parametrize("verb", ["hold", "release", "cancel", "confirm", "resend"])
async def test_what_does_not_apply_says_where_the_delivery_stands(sending, verb):
    """A change in the wrong status is a 409 that changes nothing; an unknown id is a 404."""
    delivery_id = await scheduled(sending)
    if verb in ("hold", "cancel"):
        await sending.post("/api/v1/internal/queue/flush", {"delivery_id": delivery_id})
        await sending.settled(delivery_id, "sent")
    before = (await sending.get(f"{DELIVERIES}/{delivery_id}")).json()
    status, problem = await change(sending, delivery_id, verb)
    assert (status, problem["code"]) == (409, "wrong_status")
    assert before["status"] in problem["detail"]
    assert (await sending.get(f"{DELIVERIES}/{delivery_id}")).json() == before
    for unknown in (UNKNOWN, "no-id"):
        status, problem = await change(sending, unknown, verb)
        assert (status, problem["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("why", "field"),
    [
        ({}, "reason"),
        ({"reason": ""}, "reason"),
        ({"reason": "x" * 501}, "reason"),
        ({"reason": "two\nlines"}, "reason"),
        ({"reason": "x", "actor": ""}, "actor"),
        ({"reason": "x", "who": "ann"}, "who"),
    ],
)
async def test_a_change_needs_a_reason(sending, why, field):
    """Who and why are one line each, bounded; what is wrong is named and changes nothing."""
    delivery_id = await scheduled(sending)
    for verb in ("hold", "resend"):
        status, problem = await change(sending, delivery_id, verb, why)
        assert (status, problem["field"]) == (422, field)
    assert (await sending.get(f"{DELIVERIES}/{delivery_id}")).json()["status"] == "rendered"


async def test_a_resend_is_made_once_under_a_key(sending, next_hop):
    """The same key answers the same new delivery, marked as replayed; the key of another resend is refused."""
    parents = [await accept(sending) for _ in range(2)]
    for parent in parents:
        await sending.settled(parent, "sent")
    path = f"{DELIVERIES}/{parents[0]}/resend"
    first, again = [await sending.post(path, WHY, "k") for _ in range(2)]
    assert (first.status_code, first.content) == (again.status_code, again.content)
    assert first.status_code == 202
    assert ["idempotent-replayed" in answer.headers for answer in (first, again)] == [False, True]
    made = first.json()["delivery_id"]
    assert (await sending.settled(made, "sent"))["parent_id"] == parents[0]
    assert len(next_hop.messages) == 3
    status, problem = await change(sending, parents[1], "resend", key="k")
    assert (status, problem["code"], problem["field"]) == (422, "idempotency_conflict", "Idempotency-Key")


async def test_a_deferred_one_that_is_held_stays(sending, next_hop):
    """What is held is not sent when its time comes, nor by a flush."""
    next_hop.reply = DEFERRED
    delivery_id = await accept(sending)
    await sending.settled(delivery_id, "rendered")
    await change(sending, delivery_id, "hold")
    next_hop.reply = "250 2.1.5 Ok"
    flushed = await sending.post("/api/v1/internal/queue/flush", {"all": True})
    assert flushed.json() == {"flushed": 0}
    assert (await sending.get(f"{DELIVERIES}/{delivery_id}")).json()["status"] == "held"
    assert next_hop.messages == []
