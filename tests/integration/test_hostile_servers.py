"""Each row of `hostile_servers`, played against the real client: what it comes to, for its own mail and for that of others."""

import asyncio
import contextlib
import itertools
import socket
import sys
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from dispatch_kit import dispatching, hop, until
from hostile_servers import CONTENTS, GROUPS, MAX_TRACED_BYTES, SCENARIOS, Connection, Proof, Server, Then
from queue_kit import accepted, rows, status
from smtp_servers import (
    PASSWORD,
    Certificates,
    OpenFence,
    free_port,
    hop_to,
    mail,
    on_both_loops,
    scripted_peer,
)

from mailkeep.core.decide import decide
from mailkeep.core.delivery import AttemptStatus, Certainty, DeliveryStatus, Guarantee
from mailkeep.core.outcome import Phase, Severity
from mailkeep.smtp.next_hop import TlsMode
from mailkeep.smtp.pool import Pool

PLACES = 2
MAILS = PLACES + 1
"""One more than there are places, so that a place or a connection is used again."""
REFUSING = {Proof.OLD_TLS, Proof.ANONYMOUS, Proof.IN_CLEAR}
PLAYS = [
    pytest.param(
        scenario,
        script,
        scenario.words[number % len(scenario.words)],
        tls,
        id=f"{scenario.number} {scenario.server}-{number}-{tls}",
    )
    for scenario in SCENARIOS
    for (number, script), tls in itertools.product(enumerate(scenario.scripts), scenario.tls)
]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority for the whole module."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@contextlib.contextmanager
def silent_listener():
    """A port whose listener takes no connection: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@contextlib.asynccontextmanager
async def playing(scenario, script, tls, certificates):
    """Run the server; yields its port and the peer, None where there is no session."""
    if scenario.kind is Server.SILENT:
        with silent_listener() as port:
            yield port, None
        return
    if scenario.kind is Server.NOBODY:
        yield free_port(), None
        return
    context = None if scenario.proof is None else certificates.hostile_context(scenario.proof)
    implicit = tls is TlsMode.IMPLICIT
    answers = {name: answer for name, answer in script.items() if name != "host"}
    refuses = scenario.proof in REFUSING
    at_ease = None if refuses else context
    async with scripted_peer(
        tls=None if implicit else at_ease, implicit_tls=at_ease if implicit else None, **answers
    ) as peer:
        peer.watching = True
        peer.refusing_tls, peer.refuses_at_once = context if refuses else None, implicit
        yield peer.port, peer


def hostile_hop(scenario, script, tls, port, certificates):
    """The hop that the row is about."""
    host = script.get("host", "127.0.0.1" if tls is TlsMode.NONE else "localhost")
    options = {"tls": tls, "max_connections": PLACES, "ca_file": certificates.ca_file}
    # Where localhost is ::1 as well, nobody listens there.
    options |= {"source_address": None if host == "127.0.0.1" else "127.0.0.1"}
    changes = options | {"timers": dict(scenario.timers)} | dict(scenario.hop)
    return msgspec.structs.replace(hop_to(port, host=host, **changes), name="hostile")


def consequence(outcome, recipients):
    """What becomes of the mail, by the policy."""
    decisions = [
        decide(
            states="o" * recipients,
            outcome=outcome,
            guarantee=guarantee,
            ladder_s=(60.0,),
            rungs_used=0,
            park_s=1.0,
            chance=0.5,
        )
        for guarantee in (Guarantee.AT_LEAST_ONCE, Guarantee.AT_MOST_ONCE)
    ]
    usual, once = decisions
    if once.status is DeliveryStatus.HELD:
        assert usual.uses_rung
        return Then.IN_DOUBT
    assert usual == once
    match usual.status:
        case DeliveryStatus.RENDERED if usual.uses_rung:
            return Then.RUNG
        case DeliveryStatus.RENDERED:
            return Then.PARKED if outcome.certainty is Certainty.NOT_DELIVERED else Then.REST
        case status:
            return Then(status.value)


@pytest.mark.parametrize(("scenario", "script", "words", "tls"), PLAYS)
@on_both_loops
async def test_a_hostile_server_harms_its_own_mail_only(certificates, scenario, script, words, tls):
    """The attempt ends as the row says, in bounded memory; another hop's mail arrives; no connection is held beyond the limit."""
    if scenario.kind is Server.SILENT and sys.platform != "linux":
        pytest.skip("a full backlog is silent on Linux alone")
    async with playing(scenario, script, tls, certificates) as (port, peer), scripted_peer() as well:
        hostile = hostile_hop(scenario, script, tls, port, certificates)
        healthy = msgspec.structs.replace(hop_to(well.port, max_connections=1), name="healthy")
        pool, fences = Pool(hostile, healthy), [OpenFence() for _ in range(MAILS)]
        if scenario.floods:
            tracemalloc.start()
        try:
            outcomes = await asyncio.gather(
                *(pool.send(hostile, scenario.envelope, fence) for fence in fences),
                *(pool.send(healthy, mail(), OpenFence()) for _ in range(MAILS)),
            )
            if scenario.floods:
                assert tracemalloc.get_traced_memory()[1] < MAX_TRACED_BYTES
        finally:
            tracemalloc.stop()
            await pool.close(20)
    others = outcomes[MAILS:]
    assert {outcome.severity for outcome in others} == {Severity.SUCCESS}
    assert len(well.commands) == 1
    for outcome, fence in zip(outcomes, fences, strict=False):
        end = scenario.end
        assert outcome.reason == words
        assert (outcome.status, outcome.phase, outcome.certainty) == (end.status, end.phase, end.certainty)
        assert (outcome.severity, outcome.scope, outcome.rule) == (end.severity, end.scope, end.rule)
        assert consequence(outcome, len(scenario.envelope.recipients)) == end.then
        assert fence.dots_left == (end.phase is Phase.DOT)
        assert not (end.rule == "broken_protocol" and any(one.suppress for one in outcome.recipients))
        told = str(msgspec.to_builtins(outcome))
        assert PASSWORD not in told
        assert told.isprintable()
    connected = [
        any(step.phase is Phase.CONNECT and step.reply == "connected" for step in outcome.steps)
        for outcome in outcomes[:MAILS]
    ]
    expected = {Connection.NONE: 0, Connection.KEPT: PLACES, Connection.DROPPED: MAILS}
    assert sum(connected) == expected[scenario.connection]
    if peer is not None:
        assert peer.most_connections <= PLACES
        assert not set(itertools.chain(*peer.commands)) & set(scenario.never)


def test_each_number_has_a_row():
    """None of the list of failures is forgotten."""
    assert {scenario.number for scenario in SCENARIOS} == set(GROUPS)
    assert [*GROUPS] == [f"S{number}" for number in range(1, 28)]


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: content.number)
def test_the_tests_that_are_named_exist(content):
    """The page of hostile servers names no test that is gone."""
    for file, names in content.tests.items():
        text = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
        assert [name for name in names if f"def {name}(" not in text] == []


# -- through the queue ---------------------------------------------------------------------------------------------------

QUEUED = {
    ("S1", "nobody listens"),
    ("S2", "after MAIL"),
    ("S2", "after the final dot"),
    ("S3", "instead of a greeting"),
    ("S4", "greets with 421"),
    ("S5", "without end"),
    ("S5", "20 MB"),
    ("S6", "after DATA"),
    ("S7", "after the final dot"),
    ("S9", "any more"),
    ("S13", "535"),
    ("S15", "knows no such mailbox"),
    ("S20", "defers it"),
    ("S21", "answers EHLO twice"),
    ("S22", "says nothing at QUIT"),
    ("S27", "terminal escapes"),
}


def queued():
    """One row for each of `QUEUED`."""
    for number, words in sorted(QUEUED):
        found = [row for row in SCENARIOS if row.number == number and words in row.server]
        yield pytest.param(found[0], id=f"{number} {words}")


@pytest.mark.parametrize("scenario", [*queued()])
async def test_a_hostile_server_stops_no_other_mail_of_the_queue(store, certificates, scenario):
    """Another hop's mail is sent meanwhile, all of it; the record says what the row says; the hop keeps to its connections.

    Who only waits for a server here waits long, so that the others do not merely come after that.
    """
    (script, *_), (words, *_), (tls, *_) = scenario.scripts, scenario.words, scenario.tls
    waits = scenario.end.status is AttemptStatus.TIMED_OUT
    async with playing(scenario, script, tls, certificates) as (port, peer), scripted_peer() as well:
        hostile = hostile_hop(scenario, script, tls, port, certificates)
        if waits:
            hostile = msgspec.structs.replace(hostile, timers=hop("slow", port).timers)
        ids = {"hostile": [], "healthy": []}
        for number, name in enumerate([*ids] * (2 * MAILS)):
            # To somebody else each time: a refusal for good suppresses the address.
            who = {
                "recipients": (f"r{number}@example.org",),
                "recipient_hashes": (number.to_bytes(12, "big"),),
            }
            ids[name].append(await accepted(store, next_hop=name, **who))
        async with dispatching(store, hostile, hop("healthy", well.port), concurrency=4):

            async def sent():
                return {await status(store, delivery_id) for delivery_id in ids["healthy"]} == {"sent"}

            await until(sent)
            if waits:
                held = {await status(store, delivery_id) for delivery_id in ids["hostile"]}
                assert "sending" in held <= {"sending", "rendered"}
            else:
                await until(lambda: _recorded(store))
                await check_record(store, scenario, words)
        if peer is not None:
            assert peer.most_connections <= PLACES
    assert len(well.bodies) == 2 * MAILS


async def _recorded(store):
    return bool(await rows(store, "SELECT 1 FROM mail.attempts WHERE next_hop = 'hostile'"))


async def check_record(store, scenario, words):
    """Check what the queue keeps of the attempts over the hostile hop, and of their mail."""
    columns = "a.status, phase, certainty, severity, scope, rule"
    reply = "concat_ws(' ', code, enhanced, nullif(reply, ''))"
    kept = await rows(
        store,
        f"SELECT {columns}, {reply} AS words, d.status AS then, rungs_used"
        " FROM mail.attempts a JOIN mail.deliveries d ON d.id = delivery_id WHERE a.next_hop = 'hostile'",
    )
    end = scenario.end
    told = (end.status, end.phase, end.certainty, end.severity, end.scope, end.rule, words)
    assert {tuple(record)[:7] for record in kept} == {told}
    statuses = {Then.SENT: {"sent"}, Then.FAILED: {"failed"}}.get(end.then, {"rendered", "sending"})
    assert {record["then"] for record in kept} <= statuses
    assert {record["rungs_used"] for record in kept} == {int(end.then in (Then.RUNG, Then.IN_DOUBT))}
