"""Entries of the stream on the whole service: what each becomes, once, and that it is acknowledged."""

import asyncio
import json
import time

import msgspec
import pytest
import uuid_utils
from http_kit import DELIVERIES, command
from stream_kit import STREAM, Valkey, add, deliveries, drained, fields, malformed, query

from mailkeep.core.malformed import MAX_RAW_BYTES

DAY_MS = 86_400_000
LOGIN = {"subject": None, "text": None, "template_id": "login-code", "locale": "en"}


@pytest.fixture(scope="module")
def redis_of_module(tmp_path_factory):
    """Run a server for the tests of this file."""
    server = Valkey(tmp_path_factory.mktemp("valkey")).start()
    yield server
    server.stop()


@pytest.fixture
def valkey(redis_of_module):
    """Empty the server."""
    redis_of_module.do("FLUSHALL")
    return redis_of_module


@pytest.fixture
async def streaming(serve, valkey):
    """Run a service in stub mode that reads the stream."""
    return await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket))


def uuid7(age_ms):
    """Return a UUIDv7 made `age_ms` ago."""
    return str(uuid_utils.uuid7(nanoseconds=time.time_ns() - age_ms * 1_000_000))


async def test_an_entry_becomes_a_delivery(streaming, valkey, dsn):
    """A good entry is one delivery under its own id, source, class and key; its content is the mail."""
    entry = fields(**{"class": "relay"}, payload={"to": ["Ann <ann@example.org>"], "cc": ["bo@example.org"]})
    add(valkey, entry)
    await drained(valkey)
    delivery = (await streaming.get(f"{DELIVERIES}/{entry['delivery_id']}")).json()
    assert (delivery["source"], delivery["class"]) == ("notification", "relay")
    assert len(delivery["recipients"]) == 2
    assert await deliveries(dsn) == {entry["idempotency_key"]: entry["delivery_id"]}
    assert await malformed(dsn) == []


FAULTS = {
    "missing_field": (fields(idempotency_key=None), "idempotency_key"),
    "unknown_field": (fields(colour="red"), "colour"),
    "invalid_field": (fields(idempotency_key="a key"), "idempotency_key"),
    "invalid_json": (fields(payload_json="{"), "payload_json"),
    "invalid_address": (fields(payload={"to": ["ann@example.org", "nobody"]}), "payload.to[1]"),
    "invalid_locale": (
        fields(payload_mode="template", payload={**LOGIN, "locale": "e"}),
        "payload.locale",
    ),
    "unsupported_payload_mode": (fields(payload_mode="raw"), "payload_mode"),
    "unsupported_source": (fields(source="smtp"), "source"),
    "unknown_template": (
        fields(payload_mode="template", payload={**LOGIN, "template_id": "nothing"}),
        "payload.template_id",
    ),
    "missing_variable": (fields(payload_mode="template", payload=LOGIN), "payload.variables.code"),
    "too_large": (fields(payload={"subject": "x" * 501}), "payload.subject"),
    "reserved_domain": (fields(payload={"to": ["ann@example.test"]}), "payload.to"),
}


async def test_each_failure_code_has_its_record(streaming, valkey, dsn):
    """Every fault of the contract is one record with code, field, raw fields, id and source, and never stops the stream."""
    sent = {code: (add(valkey, entry)[0], entry, field) for code, (entry, field) in FAULTS.items()}
    first, second = fields(7), fields(7, payload={"subject": "Other"})
    (_, conflicting) = add(valkey, first, second)
    sent["idempotency_conflict"] = (conflicting, second, "idempotency_key")
    add(valkey, fields(8))
    await drained(valkey)
    records = {record["failure_code"]: record for record in await malformed(dsn)}
    assert set(records) == set(sent)
    for code, (entry_id, entry, field) in sent.items():
        record = records[code]
        assert (record["entry_id"], record["field"]) == (entry_id, field), code
        assert record["intake"] == "stream"
        assert (record["delivery_id"], record["source"]) == (entry["delivery_id"], entry["source"])
        kept = msgspec.msgpack.decode(record["raw"], type=dict[bytes, bytes])
        assert kept == {name.encode(): value.encode() for name, value in entry.items()}
        assert not record["cut"]
    assert set(await deliveries(dsn)) == {"order-7", "order-8"}


async def test_a_rejection_is_logged_without_what_the_command_said(streaming, valkey, log_lines):
    """The line names entry, code, field, id and source; no address and no content."""
    (entry_id,) = add(
        valkey, entry := fields(payload={"to": ["secret-address"], "subject": "secret-subject"})
    )
    await drained(valkey)
    (line,) = [line for line in log_lines if line["event"] == "stream command rejected"]
    assert line | {"log_level": "warning"} == {
        "event": "stream command rejected",
        "log_level": "warning",
        "entry_id": entry_id,
        "failure_code": "invalid_address",
        "field": "payload.to[0]",
        "delivery_id": entry["delivery_id"],
        "source": "notification",
    }
    assert "secret" not in json.dumps(log_lines, default=str)


async def test_any_bytes_are_kept_as_they_came(streaming, valkey, dsn):
    """Binary names and values come back from the record as they were added; what is shown of them is printable."""
    raw = {b"\xff\x00name": bytes(range(256)), b"source": b"\x1b[31m\xfe", b"delivery_id": b"\0" * 200}
    add(valkey, raw)
    await drained(valkey)
    (record,) = await malformed(dsn)
    assert msgspec.msgpack.decode(record["raw"], type=dict[bytes, bytes]) == raw
    assert record["source"] == "?[31m\\xfe"
    assert record["delivery_id"].isprintable()


async def test_a_huge_entry_is_cut_and_passed(streaming, valkey, dsn):
    """An entry beyond the limits, in size or in fields, leaves a small record marked as cut, and the next is taken."""
    add(valkey, fields(1, payload_json="x" * (60 * 1024 * 1024)))
    add(valkey, {f"field-{number}": "x" for number in range(5000)}, fields(2))
    await drained(valkey)
    records = await malformed(dsn)
    assert {(record["failure_code"], record["field"]) for record in records} == {
        ("too_large", "payload_json"),
        ("unknown_field", "field-0"),
    }
    for record in records:
        assert record["cut"]
        assert len(record["raw"]) < MAX_RAW_BYTES + 16_384
    assert set(await deliveries(dsn)) == {"order-2"}


async def test_a_field_given_twice_is_refused(streaming, valkey, dsn):
    """An entry that could be read in two ways is not taken."""
    flat = [part for pair in fields().items() for part in pair]
    valkey.do("XADD", STREAM, "*", *flat, "source", "api")
    await drained(valkey)
    (record,) = await malformed(dsn)
    assert (record["failure_code"], record["message"]) == ("invalid_field", "has a field twice")


# -- one namespace of keys ---------------------------------------------------------------------------------------


async def test_the_same_command_twice_is_one_delivery(streaming, valkey, dsn):
    """A command that is added again (new entry, same or other delivery id, other spelling) is the delivery it was."""
    entry = fields(1)
    spelled = json.dumps(json.loads(entry["payload_json"]), indent=1, ensure_ascii=False)
    again = [entry, entry | {"delivery_id": str(uuid_utils.uuid7())}, entry | {"payload_json": spelled}]
    add(valkey, entry, *again)
    await drained(valkey)
    add(valkey, *again)
    await drained(valkey)
    assert await deliveries(dsn) == {"order-1": entry["delivery_id"]}
    assert await malformed(dsn) == []


async def test_http_and_stream_share_their_keys(streaming, valkey, dsn):
    """What HTTP accepted is known to the stream and the other way round; another command under the key is a conflict."""
    asked = command(source="notification", payload={"to": ["ann1@example.org"]})
    answer = await streaming.post(DELIVERIES, asked, key="order-1")
    add(valkey, fields(1), fields(1, payload={"subject": "Other"}), second := fields(2))
    await drained(valkey)
    assert await deliveries(dsn) == {
        "order-1": answer.json()["delivery_id"],
        "order-2": second["delivery_id"],
    }
    (record,) = await malformed(dsn)
    assert record["failure_code"] == "idempotency_conflict"
    asked["payload"]["to"] = ["ann2@example.org"]
    replay = await streaming.post(DELIVERIES, asked, key="order-2")
    assert replay.headers["idempotent-replayed"] == "true"
    assert replay.json()["delivery_id"] == second["delivery_id"]


async def test_an_id_that_is_taken_is_refused(streaming, valkey, dsn):
    """Two commands with one delivery id and different keys are one delivery and one record."""
    first = fields(1)
    add(valkey, first, fields(2, delivery_id=first["delivery_id"]))
    await drained(valkey)
    add(valkey, fields(3, delivery_id=first["delivery_id"]))
    await drained(valkey)
    assert await deliveries(dsn) == {"order-1": first["delivery_id"]}
    assert [record["field"] for record in await malformed(dsn)] == ["delivery_id", "delivery_id"]


async def test_a_command_that_waited_for_days_is_taken_under_its_id(streaming, valkey, dsn):
    """After an outage of the service of up to 7 days all that waited is delivered; beyond, and from the future, it is refused."""
    taken = [fields(days, delivery_id=uuid7(days * DAY_MS - 60_000)) for days in (1, 3, 7)]
    refused = [fields(8, delivery_id=uuid7(7 * DAY_MS + 60_000)), fields(9, delivery_id=uuid7(-2 * DAY_MS))]
    add(valkey, *taken, *refused)
    await drained(valkey)
    assert set((await deliveries(dsn)).values()) == {entry["delivery_id"] for entry in taken}
    assert {record["delivery_id"] for record in await malformed(dsn)} == {
        entry["delivery_id"] for entry in refused
    }


async def test_a_command_of_last_week_is_known_when_the_stream_is_read_again(streaming, valkey, dsn):
    """When Redis forgets how far the group was, days-old entries are found to be the deliveries they are."""
    entries = [fields(days, delivery_id=uuid7(days * DAY_MS)) for days in range(6)]
    add(valkey, *entries)
    await drained(valkey)
    before = await deliveries(dsn)
    valkey.do("XGROUP", "DESTROY", STREAM, "mailkeep")
    await drained(valkey)
    assert await deliveries(dsn) == before
    assert await malformed(dsn) == []


async def test_what_was_accepted_is_known_although_it_would_be_refused_today(streaming, valkey, dsn):
    """An entry that is read again after its expiry is the delivery it was, not a malformed command."""
    add(valkey, entry := fields(1, expires_at_ms=str(time.time_ns() // 1_000_000 + 1500)))
    await drained(valkey)
    while time.time_ns() // 1_000_000 < int(entry["expires_at_ms"]):
        await asyncio.sleep(0.1)
    add(valkey, entry)
    await drained(valkey)
    assert await deliveries(dsn) == {"order-1": entry["delivery_id"]}
    assert await malformed(dsn) == []


async def test_a_login_code_by_stream_is_an_auth_delivery(streaming, valkey, dsn):
    """Class, template and locale of a login code arrive; nothing sensitive stays when it has ended."""
    variables = {"code": "482913", "expires_in_minutes": 15}
    add(
        valkey,
        fields(source="authsession", payload_mode="template", payload={**LOGIN, "variables": variables}),
    )
    await drained(valkey)
    ((row),) = await query(dsn, "SELECT class, template_id, locale, sensitive FROM mail.deliveries")
    assert tuple(row) == ("auth", "login-code", "en", True)
    assert await query(dsn, "SELECT * FROM mail.payloads") == []
