"""Redrive: dead letters by filter, once each, at a rate, with their record; over HTTP and on the command line."""

import asyncio
import itertools
import json
from datetime import timedelta

import pytest
from queue_kit import check_accounts, delivery, ending, finished, fresh_id, now, row, rows
from test_cli_queue import EXIT_USAGE, environ, run  # noqa: F401 - a fixture is used by its name

from mailkeep.core.command import CommandError
from mailkeep.core.delivery import DeliveryStatus
from mailkeep.core.outcome import Severity
from mailkeep.core.queue import Claim
from mailkeep.operator.redrive import OperatorRedrive, RedriveRequest
from mailkeep.store.changes import OperatorChanges

REDRIVE = "/api/v1/internal/dead-letters/redrive"


async def dead(store, **fields):
    """Let a delivery become a dead letter, claimed at birth since a service may run beside; returns its id."""
    new = await delivery(store, status=DeliveryStatus.SENDING, **fields)
    replica_id = await fresh_id(store)
    await store.accept(replica_id, [new])
    claim = Claim(
        replica_id=replica_id,
        id=new.id,
        token=1,
        source=new.source,
        delivery_class=new.delivery_class,
        guarantee=new.guarantee,
        next_hop=new.next_hop,
        attempts=0,
        rungs_used=0,
        recipient_states="o",
        size_bytes=new.size_bytes,
        sensitive=new.sensitive,
        accepted_at=await now(store),
        expires_at=None,
        sender=new.sender,
        recipients=new.recipients,
        message=new.message,
        command=None,
        traceparent=None,
    )
    await store.finish([finished(claim, ending(claim, Severity.TRANSIENT), ladder_s=())])
    return claim.id


async def redrive(store, **fields):
    """Redrive, by ann since the relay is back."""
    asked = {"reason": "the relay is back", "actor": "ann", "rate_per_s": 10_000.0} | fields
    return await OperatorRedrive(store).redrive(RedriveRequest(**asked))


async def children(store):
    """Return the deliveries that were made, by the parent."""
    found = await rows(
        store, "SELECT * FROM mail.deliveries WHERE source = 'operator_resend' ORDER BY due_at"
    )
    return {child["parent_id"]: child for child in found}


async def test_each_is_sent_once_more_and_never_twice(store):
    """They become deliveries that name their parents, recorded; a second redrive, or one by hand before, makes none."""
    ids = [await dead(store) for _ in range(3)]
    by_hand = await dead(store)
    await OperatorChanges(store).resend(by_hand, ("ann@example.org",), key=None, actor="bob", reason="asked")
    first = await redrive(store)
    assert (first.redriven, first.resent_before, first.erased, first.cursor) == (3, 1, 0, None)
    made = await children(store)
    assert {(pair.parent_id, pair.delivery_id) for pair in first.deliveries} == {
        (parent, made[parent]["id"]) for parent in ids
    }
    assert (await redrive(store)).redriven == 0
    recorded = await rows(
        store, "SELECT delivery_id, actor, reason FROM mail.operator_changes WHERE actor = 'ann'"
    )
    assert {tuple(record) for record in recorded} == {(parent, "ann", "the relay is back") for parent in ids}
    await check_accounts(store, [*ids, by_hand, *(child["id"] for child in made.values())])


async def test_redrives_side_by_side_double_nothing(store):
    """Two people at once make one delivery of each dead letter between them."""
    ids = [await dead(store) for _ in range(8)]
    answers = await asyncio.gather(*(redrive(store) for _ in range(3)))
    assert sum(answer.redriven for answer in answers) == 8
    assert (await children(store)).keys() == set(ids)
    assert len(await rows(store, "SELECT FROM mail.deliveries")) == 16


async def test_forced_it_takes_what_was_resent_before(store):
    """With `force` the same dead letter is sent once more, each time."""
    parent = await dead(store)
    for _ in range(2):
        answer = await redrive(store, force=True)
        assert (answer.redriven, answer.resent_before) == (1, 0)
    assert len(await rows(store, "SELECT FROM mail.deliveries WHERE parent_id = $1", parent)) == 2


async def test_they_are_due_at_the_rate(store):
    """Each is due one step of the rate after the one before, the first after `wait_s`."""
    for _ in range(4):
        await dead(store)
    before = await now(store)
    answer = await redrive(store, rate_per_s=0.1, wait_s=60.0)
    due_s = [(child["due_at"] - before).total_seconds() for child in (await children(store)).values()]
    for nth, wait_s in enumerate(due_s):
        assert 60 + 10 * nth <= wait_s < 60 + 10 * nth + 60
    assert all(later - sooner >= 10 for sooner, later in itertools.pairwise(due_s))
    assert answer.last_due_in_s == 90.0


async def test_a_dry_run_says_what_would_be_and_makes_nothing(store):
    """The counts are those of the real one, and the tables stay as they are."""
    ids = [await dead(store) for _ in range(2)]
    await dead(store, sensitive=True)
    dry = await redrive(store, dry_run=True)
    assert [(pair.parent_id, pair.delivery_id) for pair in dry.deliveries] == [
        (parent, None) for parent in ids
    ]
    assert await children(store) == {}
    real = await redrive(store)
    assert (dry.redriven, dry.erased) == (real.redriven, real.erased) == (2, 1)


async def test_filters_and_pages(store):
    """Class, source, rule, cause, domain and the time of burial choose; a limit leaves the others to the cursor."""
    ids = [await dead(store), await dead(store, recipient_domain="other.example"), await dead(store)]
    later = await now(store) + timedelta(hours=1)
    for none in (
        {"delivery_class": "relay"},
        {"source": "smtp"},
        {"rule": "another"},
        {"cause": "poison"},
        {"since": later},
        {"until": later - timedelta(days=1)},
    ):
        assert (await redrive(store, dry_run=True, **none)).redriven == 0
    fits = {"delivery_class": "transactional", "source": "api", "rule": "a_rule", "cause": "ladder_exhausted"}
    one = await redrive(store, domain="Other.Example", until=later, **fits)
    assert [pair.parent_id for pair in one.deliveries] == [ids[1]]
    part = await redrive(store, limit=1)
    assert ([pair.parent_id for pair in part.deliveries], part.cursor is None) == ([ids[0]], False)
    rest = await redrive(store, limit=1, cursor=part.cursor)
    assert [pair.parent_id for pair in rest.deliveries] == [ids[2]]


@pytest.mark.parametrize(
    "wrong", [{"cause": "relay"}, {"domain": "no domain"}, {"source": "x"}, {"reason": "a\nb"}]
)
async def test_a_wrong_filter_is_refused(store, wrong):
    """It is named, and nothing is made: a filter that were ignored would send the wrong mail."""
    parent = await dead(store)
    with pytest.raises(CommandError) as refused:
        await redrive(store, **wrong)
    assert (refused.value.field, await children(store)) == (*wrong, {})
    assert (await row(store, parent))["status"] == "dead_letter"


async def test_over_http_the_mail_arrives_in_the_end(sending, next_hop, store):
    """What died while the relay was broken is delivered after a redrive, and the events tell both."""
    dead_id = await dead(store, recipients=("ann@example.org",))
    answer = await sending.post(REDRIVE, {"reason": "the relay is back", "cause": "ladder_exhausted"})
    assert (answer.status_code, answer.json()["redriven"]) == (200, 1)
    made = answer.json()["deliveries"][0]
    assert made["parent_id"] == str(dead_id)
    await sending.settled(made["delivery_id"], "sent")
    assert len(next_hop.messages) == 1
    page = (
        await sending.get("/api/v1/internal/events", type=["delivery.sent", "delivery.dead_letter"])
    ).json()
    assert [(event["type"], event["data"]["delivery_id"]) for event in page["events"]] == [
        ("delivery.dead_letter", str(dead_id)),
        ("delivery.sent", made["delivery_id"]),
    ]
    assert page["events"][1]["data"]["parent_id"] == str(dead_id)
    rest = (await sending.get("/api/v1/internal/events", after=page["after"])).json()
    assert rest == {"events": [], "after": page["after"]}
    for wrong in ({"after": "x"}, {"type": "delivery.born"}, {"limit": "0"}):
        assert (await sending.get("/api/v1/internal/events", **wrong)).status_code == 400


async def test_on_the_command_line(environ, store):  # noqa: F811
    """A dry run, the redrive, its repetition, and the events with a cursor, in the words of an operator."""
    ids = [str(await dead(store)) for _ in range(3)]
    why = ("dead-letters", "redrive", "--why", "the relay is back", "--as", "ann", "--rate", "0.01/s")
    dry = await run(environ, *why, "--dry-run")
    assert dry.lines[0] == "3 dead letters would be sent once more, the last of them in 3m20s"
    real = json.loads((await run(environ, *why, "--json", "--limit", "2")).output)
    assert [pair["parent_id"] for pair in real["deliveries"]] == ids[:2]
    again = await run(environ, *why)
    assert again.lines[:2] == [
        "1 dead letters are sent once more",
        "2 were resent before; --force takes them, too",
    ]
    assert (await run(environ, *why, "--rate", "fast")).code == EXIT_USAGE
    assert (await run(environ, "dead-letters", "redrive")).code == EXIT_USAGE
    assert len((await run(environ, "dead-letters")).lines) == 4
    told = await run(environ, "events", "--type", "delivery.dead_letter")
    assert [line.split()[3] for line in told.lines[:-1]] == ids
    cursor = told.lines[-1].split()[-1]
    page = json.loads((await run(environ, "events", "--after", cursor, "--json")).output)
    assert "delivery.dead_letter" not in [event["type"] for event in page["events"]]
    page = json.loads((await run(environ, "events", "--after", "0-0", "--limit", "1", "--json")).output)
    assert [event["data"]["delivery_id"] for event in page["events"]] == ids[:1]
    assert (await run(environ, "events", "--after", "x")).code == EXIT_USAGE
