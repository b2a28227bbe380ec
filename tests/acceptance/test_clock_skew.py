"""One replica's clock is an hour off, or jumps: PostgreSQL's clock decides, so nothing is early, late, doubled or lost."""

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from harness import QUICK, Database, Deployment, Service, mails, rendered, submit_all, until

from mailkeep.core.ids import new_id
from mailkeep.drill.ledger import Submission

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
FIRST_WAIT_S = 0.2 * 0.9  # the ladder of QUICK with its least jitter
SEND_IN_S = 5

pytestmark = pytest.mark.skipif(FAKETIME is None, reason="faketime is not installed (see .ci/run)")
Wrong = tuple[Service, Callable[[str], None]]


def wrong_clock(deployment: Deployment, sink_port: int, offset: str) -> Wrong:
    """Return a replica whose clock is off by `offset`, and what sets it anew while it runs."""
    file = deployment.folder / "clock"

    def set_clock(offset: str) -> None:
        draft = file.with_suffix(".new")
        draft.write_text(f"{offset}\n")
        draft.rename(file)

    set_clock(offset)
    faked = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        # What counts seconds since the start does not jump with the clock on any machine.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    return deployment.service(sink_port, name="wrong", **QUICK, **faked), set_clock


def scheduled(database: Database, number: int) -> Submission:
    """Return a mail that must not leave before some seconds from now."""
    now_s = float(database.value("SELECT extract(epoch FROM now())"))
    return rendered([f"later-{number}@sinkhole.test"], send_at_ms=round((now_s + SEND_IN_S) * 1000))


def own_id(database: Database) -> str:
    """Return an id that a producer with a right clock makes."""
    return str(new_id(float(database.value("SELECT extract(epoch FROM now())"))))


def check_times(database: Database) -> None:
    """Nothing was early or late by PostgreSQL's clock, and ids are of the time they were made."""
    early = database.fetch(
        "SELECT second.delivery_id FROM mail.attempts first JOIN mail.attempts second USING (delivery_id)"
        " WHERE first.number = 1 AND second.number = 2 AND first.certainty = 'not_delivered'"
        " AND second.started_at < first.finished_at + $1::interval",
        timedelta(seconds=FIRST_WAIT_S),
    )
    assert early == []
    off = database.fetch(
        "SELECT id, accepted_at FROM mail.deliveries WHERE abs(extract(epoch FROM accepted_at)"
        " - ('x' || lpad(translate(left(id::text, 13), '-', ''), 16, '0'))::bit(64)::bigint / 1000.0) > 30"
    )
    assert off == []


@pytest.mark.parametrize("offset", ["+1h", "-1h"])
def test_a_clock_an_hour_off_changes_nothing(deployment: Deployment, offset: str):
    """Beside a right one it accepts, waits, schedules and sends alike; when the right one dies it takes over, not before."""
    sink = deployment.told_sink()
    wrong, _ = wrong_clock(deployment, sink.port, offset)
    right = deployment.service(sink.port, name="right", **QUICK)
    wrong.spawn(), right.spawn()
    wrong.ready(), right.ready()
    check_fake(wrong, right)
    submissions = []
    for service in (wrong, right):
        batch = mails(24, scripts=("", "", "", "defer-1x+"))
        batch += [scheduled(deployment.database, number) for number in range(4)]
        submit_all(service, batch)
        submissions += batch
    deployment.database.drain()
    check_times(deployment.database)
    check_scheduled(deployment.database, submissions)
    for service in (wrong, right):
        assert service.logged("replica lost") == []
        assert service.logged("replica was declared lost and starts anew") == []
    sink.mode("stall@dot")
    held = mails(4)
    submit_all(right, held)
    until(lambda: sink.connection_count, "they are being sent")
    right.kill9()
    sink.mode("accept")
    submissions += held
    deployment.database.drain()
    assert wrong.logged("claims taken over")
    deployment.database.check(submissions, sink.copies)


def check_fake(wrong: Service, right: Service) -> None:
    """The one clock is really an hour from the other."""
    times = [service.logged("attempt scheduler started")[0]["timestamp"] for service in (wrong, right)]
    assert times[0][11:13] != times[1][11:13], times


def check_scheduled(database: Database, submissions: list[Submission]) -> None:
    """What was scheduled left at its time: not before, and not an hour after."""
    for submission in submissions:
        if send_at_ms := submission.body.get("send_at_ms"):
            (delivery_id,) = submission.ids
            started_s = database.value(
                "SELECT extract(epoch FROM started_at)::float8 FROM mail.attempts WHERE delivery_id = $1::text::uuid",
                delivery_id,
            )
            assert 0 <= started_s - send_at_ms / 1000 < 60, json.dumps(submission.body["payload"]["to"])


def test_a_clock_that_jumps_changes_nothing(deployment: Deployment):
    """Forth, back and by a month while mail waits and goes: nothing is early, expired, taken over or doubled."""
    sink = deployment.told_sink()
    wrong, set_clock = wrong_clock(deployment, sink.port, "+0")
    wrong.start()
    submissions = []
    for offset in ("+1h", "-1h", "+30d", "-30d", "+0"):
        set_clock(offset)
        batch = mails(12, scripts=("", "", "", "defer-1x+"))
        batch.append(
            rendered(
                [f"own-{offset[1:]}{len(submissions)}@sinkhole.test"], delivery_id=own_id(deployment.database)
            )
        )
        submit_all(wrong, batch)
        submissions += batch
    deployment.database.drain()
    check_times(deployment.database)
    ledger = deployment.database.check(submissions, sink.copies)
    assert len(ledger.copies) == len(submissions)
    assert wrong.logged("replica was declared lost and starts anew") == []
    assert len({line["timestamp"][:7] for line in wrong.lines}) > 1, os.environ.get("LD_PRELOAD", "")
