"""Erasure on request: nothing of the address is left in any table, live mail is told or cancelled, others' mail stays."""

import asyncio
import json
import os

import pytest
from queue_kit import ANY, accepted, claim_one, ending, finished, replica, row, rows, status
from typer.testing import CliRunner

from mailkeep.cli import app
from mailkeep.core.command import CommandError, FailureCode
from mailkeep.core.malformed import Intake, malformed
from mailkeep.core.outcome import Scope, Severity
from mailkeep.operator.changes import Why
from mailkeep.operator.erase import ErasureRequest, LiveMailError, OperatorErasure, SuppressionFate
from mailkeep.operator.suppressions import OperatorSuppressions
from mailkeep.store.changes import OperatorChanges, Verb
from mailkeep.store.erasure import BATCH, Live
from mailkeep.store.malformed import MalformedCommands

ANN, BOB = "ann@example.org", "bob@example.org"
WHY = Why("request 4711", "eve")


async def erase(store, why, recipient=ANN, **options):
    """Erase an address."""
    wanted = ErasureRequest(recipient, why.reason, why.actor, **options)
    return await OperatorErasure(store).erase(wanted)


async def mentioning(store, *words):
    """Return the tables in which one of `words` stands, whatever the letter case; bytes are looked into as well."""
    found = set()
    for table in await rows(
        store, "SELECT relname FROM pg_class WHERE relnamespace = 'mail'::regnamespace AND relkind = 'r'"
    ):
        for record in await rows(store, f"SELECT * FROM mail.{table['relname']}"):
            text = b" ".join(
                value if isinstance(value, bytes) else str(value).encode() for value in record.values()
            ).lower()
            if any(word.lower().encode() in text for word in words):
                found.add(table["relname"].partition("_p2")[0])
    return found


@pytest.fixture
async def traces(store):
    """Leave traces of Ann everywhere they can be; return her deliveries and one of Bob's alone."""
    bounced = await claim_one(store, recipients=("Ann@example.org",), idempotency_key=f"welcome-{ANN}")
    refusal = ending(bounced, Severity.PERMANENT, scope=Scope.RECIPIENT, suppress=True, text="no ann here")
    await store.finish([finished(bounced, refusal)])
    suppressed = await accepted(store, recipients=(ANN,))
    assert await status(store, suppressed) == "suppressed"
    await OperatorSuppressions(store).remove(ANN, actor="eve", note=f"{ANN} called")
    lettered = await claim_one(store, recipients=(ANN, BOB))
    letter = ending(lettered, Severity.TRANSIENT, text="ann is full")
    await store.finish([finished(lettered, letter, ladder_s=())])
    waiting = await accepted(store, recipients=(ANN,), supersede_hash=b"s" * 16)
    await OperatorChanges(store).change(Verb.HOLD, waiting, actor="eve", reason="ann asked")
    bob = await claim_one(store, recipients=(BOB,), idempotency_key="bob")
    await store.finish([finished(bob, ending(bob, Severity.PERMANENT, text="no bob here"))])
    records = [
        malformed(Intake.SQL, entry, fields, CommandError(FailureCode.INVALID_FIELD, "to", "is bad"))
        for entry, fields in (
            ("1", {b"payload_json": b'{"to": ["Ann\\u0040example.org"]}'}),
            ("2", {b"payload_json": b'{"to": ["' + BOB.encode() + b'"]}'}),
        )
    ]
    await MalformedCommands(store).keep(records, 1.8e9)
    again = await claim_one(store, recipients=(ANN,))
    bounce = ending(again, Severity.PERMANENT, scope=Scope.RECIPIENT, suppress=True, text="no ann here")
    await store.finish([finished(again, bounce)])
    return [bounced.id, suppressed, lettered.id, waiting, again.id], bob.id


async def test_nothing_of_the_address_is_left(store, traces):
    """After an erasure no row of any table holds the address or a word about it; Bob's own mail is untouched."""
    mine, bobs = traces
    assert {
        "payloads",
        "attempts",
        "idempotency_keys",
        "operator_changes",
        "suppressions",
    } <= await mentioning(store, "ann")
    untouched = (await row(store, bobs), await mentioning(store, "no bob here"))
    report = await erase(store, WHY, cancel=True, recipient="Ann@Example.org")
    assert report.is_whole
    assert await mentioning(store, "ann@", "ann ", " ann", "\\u0040example") == set()
    assert await rows(store, "SELECT FROM mail.payloads WHERE delivery_id = ANY ($1)", mine) == []
    assert (await row(store, bobs), await mentioning(store, "no bob here")) == untouched
    erased = report.erased
    assert (erased.deliveries, erased.cancelled, erased.malformed_commands, erased.keys) == (5, 1, 1, 1)
    assert {(await status(store, each)) for each in mine} == {
        "failed",
        "suppressed",
        "dead_letter",
        "cancelled",
    }


async def test_the_erasure_is_recorded_without_the_address(store, traces):
    """Who, why and how much is kept; a reason that names the address is refused before anything is done."""
    for why in (Why(f"asked by {ANN}"), Why("x", ANN.upper())):
        with pytest.raises(CommandError):
            await erase(store, why, cancel=True)
    assert await rows(store, "SELECT FROM mail.erasures") == []
    report = await erase(store, WHY, cancel=True)
    (record,) = await rows(store, "SELECT * FROM mail.erasures")
    assert (record["actor"], record["reason"]) == ("eve", "request 4711")
    assert json.loads(record["erased"])["deliveries"] == report.erased.deliveries


async def test_a_dry_run_tells_what_an_erasure_would_do(store, traces):
    """The counts of a dry run are those of the erasure, and it changes nothing."""
    before = await mentioning(store, "ann")
    told = await erase(store, WHY, dry_run=True)
    assert await mentioning(store, "ann") == before
    assert told.left == Live(waiting=1, sending=0, inbox=0)
    done = await erase(store, WHY, cancel=True)
    for name in ("payloads", "attempts", "dead_letters", "suppressions", "malformed_commands", "keys"):
        assert getattr(told.erased, name) == getattr(done.erased, name), name


async def test_live_mail_is_not_dropped_in_silence(store):
    """Mail that waits stops an erasure unless it shall be cancelled; what is being sent is left and told."""
    waiting = await accepted(store, recipients=(ANN,))
    with pytest.raises(LiveMailError):
        await erase(store, WHY)
    assert await status(store, waiting) == "rendered"
    (claim,) = await store.claim_due(await replica(store), ANY, 1)
    await rows(store, "SELECT mail.enqueue($1)", json.dumps({"payload": {"to": [ANN]}}))
    report = await erase(store, WHY, cancel=True)
    assert report.left == Live(waiting=0, sending=1, inbox=1)
    assert not report.is_whole
    await store.finish([finished(claim)])
    await rows(store, "DELETE FROM mail.enqueued")
    assert (await erase(store, WHY)).is_whole
    assert await mentioning(store, ANN) == set()


@pytest.mark.parametrize("keep", [True, False])
async def test_a_suppression_stays_as_a_hash_unless_it_is_erased_too(store, traces, keep):
    """Kept, the address still gets no mail and is in no export; erased, it gets mail again and nothing recalls it."""
    await erase(store, WHY, cancel=True, suppression=SuppressionFate.KEEP if keep else SuppressionFate.ERASE)
    assert await status(store, await accepted(store, recipients=(ANN,))) == (
        "suppressed" if keep else "rendered"
    )
    assert [found async for found in OperatorSuppressions(store).everything()] == []
    about = await rows(store, "SELECT FROM mail.operator_changes WHERE address_hash IS NOT NULL")
    assert bool(about) is keep


async def test_more_than_a_batch_is_erased(store):
    """Batches are bounded; all of them are done."""
    await accepted(store, recipients=(ANN,))
    await rows(
        store,
        "WITH one AS (SELECT * FROM mail.deliveries), ids AS (SELECT mail.new_id() AS fresh FROM generate_series(1, $1::int)),"
        " made AS (INSERT INTO mail.deliveries (id, source, class, guarantee, status, next_hop, accepted_at, finished_at,"
        " recipient_states, recipient_domain, size_bytes, sensitive) SELECT fresh, source, class, guarantee, 'cancelled',"
        " next_hop, accepted_at, mail.now(), 'o', recipient_domain, size_bytes, sensitive FROM one, ids RETURNING id)"
        " INSERT INTO mail.recipients SELECT address_hash, made.id FROM made, mail.recipients",
        BATCH + 1,
    )
    report = await erase(store, WHY, cancel=True)
    assert report.erased.deliveries == BATCH + 2
    assert await rows(store, "SELECT FROM mail.recipients") == []


async def test_the_command_line(store, dsn, traces, monkeypatch):
    """Without --cancel it says what stands in the way; with it, what was erased and what is out of its reach."""
    for name in [name for name in os.environ if name.startswith("MAIL_")]:
        monkeypatch.delenv(name)

    async def run(*arguments):
        command = ["erase", "--recipient", ANN, "--why", "request 4711", *arguments]
        return await asyncio.to_thread(CliRunner().invoke, app, command, env={"MAIL_POSTGRES_DSN": dsn})

    stopped = await run()
    assert (stopped.exit_code, "--cancel" in stopped.output) == (1, True)
    told = json.loads((await run("--dry-run", "--json")).output)
    assert told["left"]["waiting"] == 1
    done = await run("--cancel")
    assert done.exit_code == 0, done.output
    assert "backups" in done.output
    assert ANN not in done.output
    assert (await run("--suppression", "maybe")).exit_code == 2
