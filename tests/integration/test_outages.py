"""Long trouble with a next hop, with the clock moved on: an outage of hours, and one fault after another of smtp-sink."""

import os
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from dispatch_kit import PATIENCE_S, dispatching, hop, until
from queue_kit import HOP, check_accounts, delivery, fresh_id, rows, shift_clock
from smtp_servers import free_port, scripted_peer, smtp_sink

from mailkeep.core.delivery import DeliveryClass
from mailkeep.dispatch import breaker

OUTAGE = timedelta(hours=2)
STEP = timedelta(minutes=10)
MESSAGES = int(os.environ.get("MAILKEEP_TEST_MESSAGES", "200"))
"""Through each fault of smtp-sink; by hand 10,000 take some minutes."""
LONG_S = PATIENCE_S + MESSAGES / 10
FAULTS = ("-r RCPT", "-q MAIL", "-q DATA", "-r .", "-q .")
PATIENT = (7200.0,) * len(FAULTS)


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch):
    """A breaker's probes go by a clock that no test moves: let them come at once."""
    monkeypatch.setattr(breaker, "FIRST_PROBE_S", 0.05)
    monkeypatch.setattr(breaker, "LAST_PROBE_S", 0.05)


@pytest.fixture
def dump():
    """A folder that smtp-sink may write to, whoever it runs as."""
    with tempfile.TemporaryDirectory(prefix="mk-dump-") as folder:
        path = Path(folder)
        path.chmod(0o777)
        yield path


async def accept(store, count, **fields):
    """Accept `count` deliveries, each with its id in its Message-ID; return their ids."""
    ids = []
    while len(ids) < count:
        batch = []
        for _ in range(min(count - len(ids), 500)):
            delivery_id = await fresh_id(store)
            message = (
                b"Message-ID: <%s@example.org>\r\nSubject: hello\r\n\r\nhello\r\n" % str(delivery_id).encode()
            )
            batch.append(await delivery(store, id=delivery_id, message=message, **fields))
        await store.accept(batch[0].id, batch)
        ids += [new.id for new in batch]
    return ids


async def test_two_hours_of_outage_use_no_rung(store):
    """Mail of all classes waits through two hours without a next hop, each still with its whole ladder, and is sent after it."""
    port = free_port()
    async with dispatching(store, hop(HOP, port)) as dispatch:
        ids = []
        for delivery_class in DeliveryClass:
            ids += await accept(store, 20, delivery_class=delivery_class)
        for _ in range(OUTAGE // STEP):
            (before,) = await rows(store, "SELECT count(*) AS count FROM mail.attempts")
            await shift_clock(store, STEP)
            dispatch.scheduler.wake()

            async def tried_again(known=before["count"]):
                (found,) = await rows(store, "SELECT count(*) AS count FROM mail.attempts")
                return found["count"] > known

            await until(tried_again)
        found = await rows(store, "SELECT status, rungs_used, attempts FROM mail.deliveries")
        assert {record["status"] for record in found} <= {"rendered", "sending"}
        assert {record["rungs_used"] for record in found} == {0}
        tried = await rows(store, "SELECT DISTINCT scope, rule FROM mail.attempts")
        assert [tuple(record) for record in tried] == [("next_hop", "no_connection")]
        async with scripted_peer(port=port) as peer:
            await shift_clock(store, STEP)
            dispatch.scheduler.wake()
            await until(lambda: len(peer.bodies) == len(ids))
            await until(lambda: not dispatch.pool.held)
    ended = await rows(store, "SELECT status, rungs_used FROM mail.deliveries")
    assert {tuple(record) for record in ended} == {("sent", 0)}
    await check_accounts(store, ids)


@pytest.mark.postfix
@pytest.mark.timeout(3600)
async def test_the_accounts_hold_through_every_fault_of_smtp_sink(store, dump):
    """Refused for good ends failed; all else survives each fault by one rung and arrives once, or twice where unknown."""
    port, began_s = free_port(), time.monotonic()
    async with dispatching(store, hop(HOP, port), concurrency=20, ladder_s=PATIENT) as dispatch:
        with smtp_sink("-f", "RCPT", port=port):
            refused = await accept(store, MESSAGES // 10)
            dispatch.scheduler.wake()
            await until(lambda: _none_is(store, "status IN ('rendered', 'sending')"), LONG_S)
        ids = await accept(store, MESSAGES)
        for number, fault in enumerate(FAULTS, start=1):
            with smtp_sink(*fault.split(), port=port):
                await shift_clock(store, timedelta(hours=3))
                dispatch.scheduler.wake()
                await until(
                    lambda wanted=number: _none_is(
                        store, f"rungs_used < {wanted} AND status <> 'failed' OR status = 'sending'"
                    ),
                    LONG_S,
                )
        with smtp_sink("-d", str(dump / "%M."), port=port):
            await shift_clock(store, timedelta(hours=3))
            dispatch.scheduler.wake()
            await until(lambda: _none_is(store, "status IN ('rendered', 'sending')"), LONG_S)
    await check_accounts(store, [*refused, *ids])
    statuses = await rows(store, "SELECT id, status FROM mail.deliveries")
    assert Counter(record["status"] for record in statuses) == {"failed": len(refused), "sent": len(ids)}
    attempts = await rows(store, "SELECT delivery_id, certainty FROM mail.attempts")
    certainties = Counter(record["certainty"] for record in attempts)
    assert certainties["unknown"] == certainties["delivered"] == len(ids)
    arrived = Counter(
        line.split(b"<")[1].split(b"@")[0].decode()
        for file in dump.iterdir()
        for line in file.read_bytes().splitlines()
        if line.startswith(b"Message-ID:")
    )
    assert arrived == Counter(map(str, ids))
    figures = f"{len(statuses)} deliveries, {len(attempts)} attempts in {time.monotonic() - began_s:.0f} s"
    print(f"{figures}: {dict(certainties)}")  # noqa: T201 - the figure of the run


async def _none_is(store, condition):
    (found,) = await rows(store, f"SELECT count(*) AS count FROM mail.deliveries WHERE {condition}")
    return found["count"] == 0
