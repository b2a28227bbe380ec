"""Mail for reserved domains never leaves: refused at intake, refused again at the route, each with a line and a count."""

import asyncio

import asyncpg
import pytest
from dispatch_kit import dispatching, hop, until
from http_kit import DELIVERIES, command
from queue_kit import HOP, accepted, attempts, row, status
from smtp_servers import scripted_peer

from mailkeep.telemetry import metrics

RESERVED = ("a.test", "b.example", "c.invalid", "d.localhost", "Sinkhole.Test")
EVENT = "request for a reserved domain refused"
COMMAND_EVENT = "command for a reserved domain refused"
ROUTE_EVENT = "reserved domain refused at its route"


@pytest.fixture
def counted(monkeypatch):
    """Gather what is counted as refused."""
    seen, count = [], metrics.count

    def note(metric, events):
        events = list(events)
        if metric is metrics.RESERVED_DOMAIN:
            seen.extend(events)
        count(metric, events)

    monkeypatch.setattr(metrics, "count", note)
    return seen


async def test_http_refuses_and_says_so(served, log_lines, counted):
    """Each reserved domain is a 422 with its code, a line without the address, and a count; example.com is not one."""
    for domain in RESERVED:
        answer = await served.post(DELIVERIES, command(payload={"to": [f"ann@{domain}"]}))
        assert (answer.status_code, answer.json()["code"]) == (422, "reserved_domain")
    assert [line["event"] for line in log_lines].count(EVENT) == len(RESERVED)
    assert "ann" not in str(log_lines)
    assert counted == [("http",)] * len(RESERVED)
    allowed = await served.post(DELIVERIES, command(payload={"to": ["ann@example.com"]}))
    assert allowed.status_code == 202


async def test_sql_refuses_and_says_so(served, dsn, log_lines, counted):
    """A command of `mail.enqueue` for a reserved domain becomes a malformed one, with the line and the count."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            """SELECT mail.enqueue('{"payload_mode": "rendered", "payload": {"to": ["ann@a.test"], "subject": "x", "text": "y"}}')"""
        )
    finally:
        await connection.close()
    async with asyncio.timeout(90):
        while not counted:
            await asyncio.sleep(0.02)
    assert counted == [("sql",)]
    assert COMMAND_EVENT in [line["event"] for line in log_lines]


@pytest.mark.parametrize("address", ["ann@a.test", "bob@b.EXAMPLE.", "ann@sinkhole.test", "eve@localhost"])
async def test_what_is_queued_all_the_same_never_leaves_by_an_ordinary_hop(
    store, log_lines, counted, address
):
    """A delivery that other settings, or somebody's hand, put into the queue ends `failed` by its rule; nobody is connected to."""
    async with scripted_peer() as peer, dispatching(store, hop(HOP, peer.port)) as dispatch:
        delivery_id = await accepted(store, recipients=(address,))
        dispatch.scheduler.wake()

        async def ended():
            return await status(store, delivery_id) == "failed"

        await until(ended)
        assert peer.commands == []
    (attempt,) = await attempts(store, delivery_id)
    assert (attempt["status"], attempt["rule"], attempt["phase"]) == (
        "render_failed",
        "reserved_domain",
        "render",
    )
    assert "reserved (RFC 2606)" in (await row(store, delivery_id))["last_reason"]
    (line,) = [line for line in log_lines if line["event"] == ROUTE_EVENT]
    assert line["delivery_id"] == str(delivery_id)
    assert "@" not in str(line)
    assert counted == [("route",)]


async def test_the_sinkhole_is_the_one_way_out(store):
    """The same recipient at the sinkhole's hop is sent."""
    async with scripted_peer() as peer, dispatching(store, hop("sinkhole", peer.port)) as dispatch:
        delivery_id = await accepted(store, recipients=("ann@sinkhole.test",), next_hop="sinkhole")
        dispatch.scheduler.wake()

        async def sent():
            return await status(store, delivery_id) == "sent"

        await until(sent)
