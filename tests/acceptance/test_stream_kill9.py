"""A consumer killed in the middle of the stream: of two replicas the survivor takes the rest, and what the dead one held."""

import json
import signal
import time

import pytest
import redis
from harness import QUICK, until

from mailkeep.core.ids import new_id
from mailkeep.intake.stream import GROUP, STREAM

COUNT = 20_000
XADD_BATCH = 2_000
NO_SINK = 9  # nothing is sent in stub mode
ACCOUNTS = """
SELECT (SELECT count(*) FROM mail.deliveries) AS stored,
       (SELECT count(*) FROM mail.deliveries WHERE status = 'suppressed') AS suppressed,
       (SELECT count(DISTINCT delivery_id) FROM witness.moves WHERE before IS NULL) AS born,
       (SELECT count(*) FROM witness.moves) AS moves,
       (SELECT count(*) FROM mail.malformed_commands) AS malformed
"""
"""The accounting identity in figures: the ledger of the other tests would take longer than all the rest."""


@pytest.fixture
def stream(redis_server):
    """Yield a client of the session's Redis, emptied."""
    with redis.Redis(unix_socket_path=str(redis_server.socket), decode_responses=True) as client:
        client.flushall()
        yield client


def entries(count):
    """Return the fields of `count` entries that can be taken."""
    payload = {"to": ["ann@example.org"], "subject": "Hello", "text": "It works."}
    return [
        {
            "delivery_id": str(new_id(time.time())),
            "source": "notification",
            "payload_mode": "rendered",
            "idempotency_key": f"order-{number}",
            "requested_at_ms": str(time.time_ns() // 1_000_000),
            "payload_json": json.dumps(payload),
        }
        for number in range(count)
    ]


def add(stream, added):
    """Add entries, many at a time."""
    for start in range(0, len(added), XADD_BATCH):
        pipeline = stream.pipeline(transaction=False)
        for entry in added[start : start + XADD_BATCH]:
            pipeline.xadd(STREAM, entry)
        pipeline.execute()


def test_a_kill_in_the_middle_of_20000_entries(deployment, stream, redis_server, record_property):
    """Each of 20,000 entries is one delivery that ends once, although its consumer dies with entries in its hands.

    In stub mode, since the claim is about intake: each ends `suppressed` in the commit that makes it, and the witness of
    every change would show a second ending. What becomes of copies when a replica dies is `test_kill9_under_load`'s.
    """
    environ = {"MAIL_REDIS_MASTER_ADDR": str(redis_server.socket), "MAIL_SMTP_MODE": "stub", **QUICK}
    doomed, survivor = (deployment.service(NO_SINK, name=name, **environ) for name in ("doomed", "survivor"))
    doomed.spawn(), survivor.spawn()
    doomed.ready(), survivor.ready()
    began_s = time.monotonic()
    added = entries(COUNT)
    add(stream, added)
    until(lambda: group(stream)["entries-read"] >= COUNT // 4, "the stream is read in full swing")
    held = kill_with_entries(doomed, stream)
    assert group(stream)["lag"] > 0, "it died after the stream was read instead of in it"
    until(lambda: (group(stream)["lag"], group(stream)["pending"]) == (0, 0), "the stream is taken")
    took_s = time.monotonic() - began_s
    print(f"{COUNT} entries in {took_s:.1f} s; {held} were held by the one that died")  # noqa: T201 - the figure
    record_property("took_s", round(took_s, 1))
    (counts,) = deployment.database.fetch(ACCOUNTS)
    print(*(f"{name} {count}" for name, count in counts.items()), sep=", ")  # noqa: T201 - the ledger
    assert dict(counts) == {
        "stored": COUNT,
        "suppressed": COUNT,
        "born": COUNT,
        "moves": COUNT,
        "malformed": 0,
    }
    keys = deployment.database.fetch("SELECT key, delivery_id::text FROM mail.idempotency_keys")
    assert dict(map(tuple, keys)) == {entry["idempotency_key"]: entry["delivery_id"] for entry in added}


def group(stream):
    """Return what Redis says of the group."""
    return next(each for each in stream.xinfo_groups(STREAM) if each["name"] == GROUP)


def kill_with_entries(service, stream):
    """Kill a replica at a moment in which it has read entries and not acknowledged them; returns how many."""
    name = service.logged("replica heartbeat started")[0]["replica_id"]

    def frozen_with_entries():
        service.signal(signal.SIGSTOP)
        consumer = next(each for each in stream.xinfo_consumers(STREAM, GROUP) if each["name"] == name)
        if not consumer["pending"]:
            service.signal(signal.SIGCONT)
        return consumer["pending"]

    held = until(frozen_with_entries, "it has entries in its hands")
    service.kill9()
    return held
