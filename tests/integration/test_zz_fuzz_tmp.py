"""The promise of stream intake, on the whole service: each entry ends once, as one of three things, and is acknowledged."""

import asyncio
import json
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import uuid_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_kit import GROUP, STREAM, Valkey, add, drained, query

LOGIN = {
    "template_id": "login-code",
    "locale": "en",
    "variables": {"code": "482913", "expires_in_minutes": 15},
}
PAYLOADS = [
    {"to": ["ann@example.org"], "subject": "Hello", "text": "It works."},
    {"to": ["ann@example.org", "bo@example.org"], "subject": "Grüße", "html": "<p>Hi</p>"},
    {"to": ["ann@example.org"]},
    {"to": ["nobody"], "subject": "s", "text": "t"},
    {"to": ["ann@example.test"], "subject": "s", "text": "t"},
    LOGIN | {"to": ["ann@example.org"]},
    LOGIN | {"to": ["ann@example.org"], "variables": {}},
    LOGIN | {"to": ["ann@example.org"], "template_id": "nothing"},
]
KEYS = [f"key-{number}" for number in range(6)]
"""Few, so that commands meet: repetitions and conflicts."""
IDS = [str(uuid_utils.uuid7()) for _ in range(6)]

texts = st.text(max_size=12).map(lambda text: text.encode("utf-8", "surrogatepass"))
garbage = st.dictionaries(
    st.binary(min_size=1, max_size=20) | texts, st.binary(max_size=40), min_size=1, max_size=4
)
good = st.fixed_dictionaries(
    {
        b"delivery_id": st.sampled_from(IDS),
        b"source": st.sampled_from(["notification", "authsession"]),
        b"payload_mode": st.just("rendered"),
        b"idempotency_key": st.sampled_from(KEYS),
        b"requested_at_ms": st.just("1700000000000"),
        b"payload_json": st.sampled_from(PAYLOADS[:2]).map(json.dumps),
    }
)
almost_good = st.builds(
    lambda entry, change: entry | change,
    good,
    st.fixed_dictionaries(
        {},
        optional={
            b"payload_mode": st.sampled_from(["template", "rendered", "raw"]),
            b"payload_json": st.sampled_from(PAYLOADS).map(json.dumps) | st.binary(max_size=30),
            b"class": st.sampled_from(["auth", "relay", "other"]),
            b"send_at_ms": st.sampled_from(["0", "253402300799000", "x"]),
            b"expires_at_ms": st.sampled_from(["1", "253402300799000"]),
            b"idempotency_key": texts,
            b"delivery_id": st.builds(lambda: str(uuid_utils.uuid7())) | texts,
            b"supersede_key": texts,
            b"stray": st.binary(max_size=5),
        },
    ),
)
entries = st.lists(st.one_of(good, almost_good, almost_good, garbage), min_size=1, max_size=40)


@pytest.fixture
def valkey():
    """Run a server of the test's own, in a folder short enough for its socket."""
    folder = Path(tempfile.mkdtemp(prefix="mk-valkey-"))
    server = Valkey(folder).start()
    yield server
    server.stop()
    shutil.rmtree(folder)


async def accounted(dsn, entry_ids):
    """Return how many deliveries and keys there are, and which of the entries have a malformed record."""
    (counts,) = await query(
        dsn,
        "SELECT (SELECT count(*) FROM mail.deliveries) AS deliveries,"
        " (SELECT count(*) FROM mail.idempotency_keys) AS keys, (SELECT count(*) FROM mail.payloads) AS payloads",
    )
    found = await query(dsn, "SELECT entry_id FROM mail.malformed_commands")
    records = Counter(row["entry_id"] for row in found)
    assert set(records.values()) <= {1}
    return counts, set(records) & set(entry_ids)


@settings(
    max_examples=1500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(batch=entries)
async def test_each_entry_ends_once(serve, valkey, dsn, log_lines, request, *, batch):
    """Whatever is added: deliveries = keys, every entry is a delivery, a duplicate or one record, and nothing stays pending."""
    if not hasattr(request.node, "served"):
        request.node.served = await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket))
    before, _none = await accounted(dsn, [])
    entry_ids = add(valkey, *batch)
    await drained(valkey)
    after, records = await accounted(dsn, entry_ids)
    assert after["deliveries"] == after["keys"]
    taken = [entry for entry_id, entry in zip(entry_ids, batch, strict=True) if entry_id not in records]
    keys = {(entry[b"source"], entry[b"idempotency_key"]) for entry in taken}
    assert after["deliveries"] - before["deliveries"] <= len(keys)
    held = await query(dsn, "SELECT source, key FROM mail.idempotency_keys")
    assert {(source, _text(key)) for source, key in keys} <= {(row["source"], row["key"]) for row in held}
    assert valkey.do("XPENDING", STREAM, GROUP)["pending"] == 0
    assert [line for line in log_lines if "fault" in line["event"]] == []


def _text(key):
    return key if isinstance(key, str) else key.decode()


async def test_a_command_twice_at_once_takes_one_place(serve, valkey, dsn, next_hop):
    """Repetitions in one batch leave no place of the worker pool taken for ever: as many are free afterwards as before."""
    served = await serve(
        MAIL_REDIS_MASTER_ADDR=str(valkey.socket),
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
    )
    pool = served.service._workers
    free = pool._places._free
    payload = json.dumps(PAYLOADS[0])
    batch = [
        {
            "delivery_id": delivery_id,
            "source": "notification",
            "payload_mode": "rendered",
            "idempotency_key": delivery_id,
            "requested_at_ms": str(time.time_ns() // 1_000_000),
            "payload_json": payload,
        }
        for delivery_id in [str(uuid_utils.uuid7()) for _ in range(20)]
        for _ in range(3)
    ]
    add(valkey, *batch)
    await drained(valkey)
    while len(next_hop.messages) < 20 or pool.held:
        await asyncio.sleep(0.05)
    assert pool._places._free == free
    assert len(next_hop.messages) == 20
