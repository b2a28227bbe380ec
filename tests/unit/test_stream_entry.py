"""One entry of the stream as a request: which fields it must and may have, and how each fault is named."""

import json

import pytest

from mailkeep.core.command import CommandError, FailureCode
from mailkeep.core.malformed import (
    MAX_FIELDS,
    MAX_NAME_BYTES,
    MAX_RAW_BYTES,
    MAX_SHOWN_CHARS,
    Intake,
    malformed,
    raw_fields,
)
from mailkeep.intake.stream_entry import (
    OPTIONAL,
    REQUIRED,
    REQUIRED_OF_STREAM,
    entry_of_json,
    parse_entry,
    repaired,
)

PAYLOAD = {"to": ["ann@example.org"], "subject": "Hello", "text": "It works."}
MAX_BYTES = 10_000
FAULT = CommandError(FailureCode.INVALID_FIELD, "payload.to[1]", "is wrong")


def entry(**changes):
    """Return the fields of a good entry, changed; None leaves a field out."""
    fields = {
        "delivery_id": "0190a5c0-0000-7000-8000-000000000001",
        "source": "notification",
        "payload_mode": "rendered",
        "idempotency_key": "order-1",
        "requested_at_ms": "1700000000000",
        "payload_json": json.dumps(PAYLOAD),
    } | changes
    return {
        name.encode(): value if isinstance(value, bytes) else value.encode()
        for name, value in fields.items()
        if value is not None
    }


def fault_of(fields, **options):
    """Return code and field of the fault in `fields`."""
    with pytest.raises(CommandError) as caught:
        parse_entry(fields, MAX_BYTES, **options)
    return caught.value.code, caught.value.field


def test_every_field_arrives_in_the_request():
    """Required and optional fields come out as members of the request, instants as numbers, the payload decoded."""
    request = parse_entry(
        entry(
            **{"class": "relay"},
            guarantee="at_most_once",
            expires_at_ms="1700000100000",
            send_at_ms="1700000050000",
            supersede_key="s",
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        MAX_BYTES,
    )
    assert request.delivery_id == "0190a5c0-0000-7000-8000-000000000001"
    assert (request.source, request.payload_mode, request.idempotency_key) == (
        "notification",
        "rendered",
        "order-1",
    )
    assert (request.requested_at_ms, request.expires_at_ms, request.send_at_ms) == (
        1700000000000,
        1700000100000,
        1700000050000,
    )
    assert (request.delivery_class, request.guarantee, request.supersede_key) == (
        "relay",
        "at_most_once",
        "s",
    )
    assert request.traceparent == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert request.payload.to == ("ann@example.org",)


@pytest.mark.parametrize("name", REQUIRED_OF_STREAM)
def test_a_missing_field_is_named(name):
    """Each required field of the stream is missed by its name; SQL needs only what its function can't supply."""
    fields = entry(**{name: None})
    assert fault_of(fields) == (FailureCode.MISSING_FIELD, name)
    if name in REQUIRED:
        assert fault_of(fields, required=REQUIRED) == (FailureCode.MISSING_FIELD, name)
    else:
        parse_entry(fields, MAX_BYTES, REQUIRED)


@pytest.mark.parametrize(
    ("name", "value", "code", "field"),
    [
        ("colour", "red", FailureCode.UNKNOWN_FIELD, "colour"),
        ("Source", "api", FailureCode.UNKNOWN_FIELD, "Source"),
        ("payload", "{}", FailureCode.UNKNOWN_FIELD, "payload"),
        ("\xff" * 100, "x", FailureCode.UNKNOWN_FIELD, ("\\xc3\\xbf" * 32)),
        ("payload_json", b"\xff", FailureCode.INVALID_FIELD, "payload_json"),
        ("idempotency_key", b"\xc3\x28", FailureCode.INVALID_FIELD, "idempotency_key"),
        ("payload_json", "x" * (MAX_BYTES + 1), FailureCode.TOO_LARGE, "payload_json"),
        ("requested_at_ms", "soon", FailureCode.INVALID_FIELD, "requested_at_ms"),
        ("requested_at_ms", "", FailureCode.INVALID_FIELD, "requested_at_ms"),
        ("requested_at_ms", "-1", FailureCode.INVALID_FIELD, "requested_at_ms"),
        ("requested_at_ms", "1e3", FailureCode.INVALID_FIELD, "requested_at_ms"),
        ("requested_at_ms", "\u0661", FailureCode.INVALID_FIELD, "requested_at_ms"),
        ("send_at_ms", "253402300799001", FailureCode.INVALID_FIELD, "send_at_ms"),
        ("expires_at_ms", "9" * 16, FailureCode.INVALID_FIELD, "expires_at_ms"),
        ("payload_json", "", FailureCode.INVALID_JSON, "payload_json"),
        ("payload_json", "{", FailureCode.INVALID_JSON, "payload_json"),
        ("payload_json", '{"to": [NaN]}', FailureCode.INVALID_JSON, "payload_json"),
        ("payload_json", '{"to": [], "to": []}', FailureCode.INVALID_JSON, "payload_json"),
        ("payload_json", "[" * 9000, FailureCode.INVALID_JSON, "payload_json"),
        ("payload_json", '{"x":' * 1500 + "1" + "}" * 1500, FailureCode.INVALID_JSON, "payload_json"),
        ("payload_json", "[]", FailureCode.INVALID_FIELD, "payload"),
        ("payload_json", "null", FailureCode.INVALID_FIELD, "payload"),
        ("payload_json", "{}", FailureCode.MISSING_FIELD, "payload.to"),
        ("payload_json", '{"to": "ann@example.org"}', FailureCode.INVALID_FIELD, "payload.to"),
        ("payload_json", '{"to": [], "mood": 1}', FailureCode.UNKNOWN_FIELD, "payload.mood"),
    ],
)
def test_a_bad_field_is_named(name, value, code, field):
    """Each way a field can be wrong has its code and names the field."""
    assert fault_of(entry(**{name: value})) == (code, field)


# -- commands from SQL -------------------------------------------------------------------------------------------


def test_a_command_in_json_has_the_same_meaning_as_an_entry():
    """`payload` as an object or `payload_json` as a text, instants as numbers or digits: all give the same request."""
    wanted = parse_entry(entry(send_at_ms="1800000000000"), MAX_BYTES)
    flat = {name.decode(): value.decode() for name, value in entry(send_at_ms="1800000000000").items()}
    nested = {name: value for name, value in flat.items() if name != "payload_json"} | {"payload": PAYLOAD}
    for command in (flat, nested, nested | {"send_at_ms": 1800000000000, "class": None}):
        fields, fault = entry_of_json(json.dumps(command).encode())
        assert fault is None
        assert parse_entry(fields, MAX_BYTES) == wanted


@pytest.mark.parametrize(
    ("command", "code", "field"),
    [
        ({"idempotency_key": 12}, FailureCode.INVALID_FIELD, "idempotency_key"),
        ({"source": ["api"]}, FailureCode.INVALID_FIELD, "source"),
        ({"class": {"a": 1}}, FailureCode.INVALID_FIELD, "class"),
        ({"payload": {}, "payload_json": "{}"}, FailureCode.INVALID_FIELD, "payload_json"),
        ({"payload_json": {}}, FailureCode.INVALID_FIELD, "payload_json"),
    ],
)
def test_a_member_of_the_wrong_type_is_named_and_kept(command, code, field):
    """What is not text where text belongs is a fault of that member, and its fields are kept all the same."""
    fields, fault = entry_of_json(json.dumps(command).encode())
    assert (fault.code, fault.field) == (code, field)
    assert set(fields) == {name.encode() for name in command} - {b"payload"} | (
        {b"payload_json"} if "payload" in command else set()
    )


def test_json_nested_beyond_reading_is_kept_as_it_came():
    """A command too deep to take apart is a fault and keeps its text."""
    text = b'{"payload":' + b"[" * 5000 + b"]" * 5000 + b"}"
    fields, fault = entry_of_json(text)
    assert fault.code is FailureCode.INVALID_JSON
    assert fields == {b"command": text}


def test_repairs_set_add_and_leave_out():
    """A text replaces or adds a field, None takes it away, the rest stays; the entry itself is not changed."""
    fields = {b"a": b"\xff", b"b": b"1", b"c": b"2"}
    assert repaired(fields, {"b": "ü", "c": None, "d": "4", "e": None}) == {
        b"a": b"\xff",
        b"b": "ü".encode(),
        b"d": b"4",
    }
    assert fields == {b"a": b"\xff", b"b": b"1", b"c": b"2"}


# -- records of malformed commands -------------------------------------------------------------------------------


def test_a_record_keeps_the_bytes_as_they_came():
    """Names and values of any bytes come out of a record as they went in, and it is not cut."""
    fields = {bytes(range(100)): bytes(range(256)), b"": b"", b"source": b"api"}
    record = malformed(Intake.STREAM, "1-1", fields, FAULT)
    assert raw_fields(record.raw) == fields
    assert not record.cut
    assert (record.failure_code, record.field, record.source) == ("invalid_field", "payload.to[1]", "api")


@pytest.mark.parametrize(
    "fields",
    [
        {b"payload_json": b"x" * (MAX_RAW_BYTES + 1)},
        {b"a": b"x" * MAX_RAW_BYTES, b"b": b"y"},
        {b"n" * (MAX_NAME_BYTES + 1): b"x"},
        {b"%d" % number: b"x" for number in range(MAX_FIELDS + 1)},
    ],
    ids=["one large value", "large together", "a long name", "many fields"],
)
def test_a_record_is_bounded_and_says_when_it_is_cut(fields):
    """Whatever an entry holds, its record stays small; one that lost anything is marked."""
    record = malformed(Intake.STREAM, "1-1", fields, FAULT)
    assert record.cut
    assert len(record.raw) <= MAX_RAW_BYTES + MAX_FIELDS * (MAX_NAME_BYTES + 16)


def test_the_largest_entry_that_fits_is_whole():
    """At the bounds themselves nothing is cut."""
    fields = {b"%d" % number: b"" for number in range(MAX_FIELDS - 1)} | {
        b"n" * MAX_NAME_BYTES: b"x" * MAX_RAW_BYTES
    }
    record = malformed(Intake.STREAM, "1-1", fields, FAULT)
    assert not record.cut
    assert raw_fields(record.raw) == fields


def test_what_is_shown_beside_a_record_is_harmless():
    """The producer's own delivery id and source are shown printable and short; the answered id wins."""
    fields = {b"delivery_id": b"\x1b[2J\xff" + b"x" * 200, b"source": b"a\nb\0"}
    record = malformed(
        Intake.STREAM, "1-1", fields, CommandError(FailureCode.INVALID_FIELD, "a\0b" * 99, "x")
    )
    assert record.delivery_id.startswith("?[2J\\xff")
    assert len(record.delivery_id) <= MAX_SHOWN_CHARS + 3
    assert record.source == "a?b?"
    assert "\0" not in record.field
    assert len(record.field) <= 2 * MAX_NAME_BYTES


def test_optional_fields_are_those_of_the_contract():
    """The names that an entry may have are a promise to producers."""
    assert set(OPTIONAL) == {
        "class",
        "guarantee",
        "expires_at_ms",
        "send_at_ms",
        "supersede_key",
        "traceparent",
    }
