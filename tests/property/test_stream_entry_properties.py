"""Whatever stands in an entry of the stream or in a command from SQL: a delivery is prepared or a `CommandError` says why.

Nothing else may come out of the way from raw bytes to a prepared delivery; and what is kept of a refused command is bounded
and fit for PostgreSQL.
"""

import contextlib
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from uuid import UUID

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailkeep.core.address import Mailbox
from mailkeep.core.command import CommandError, CommandRules, parse_delivery_id, parse_request
from mailkeep.core.malformed import MAX_FIELDS, MAX_NAME_BYTES, MAX_RAW_BYTES, Intake, malformed, raw_fields
from mailkeep.dispatch.right_of_way import RightOfWay
from mailkeep.intake.accept import Accept, AcceptPolicy, Prepared
from mailkeep.intake.stream_entry import OPTIONAL, REQUIRED_OF_STREAM, entry_of_json, parse_entry
from mailkeep.smtp.routes import Routes
from mailkeep.templates.catalog import SHIPPED_CATALOG, Catalog

NOW_S = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC).timestamp()
DELIVERY_ID = str(UUID(f"{int(NOW_S * 1000):012x}70008000000000000001"))
RULES = CommandRules()
SIGNED = {"code": "123456", "expires_in_minutes": 10}

ACCEPT = Accept(
    store=SimpleNamespace(hash_key=b"k" * 32),
    replica=SimpleNamespace(now_s=lambda: NOW_S),
    pool=None,
    catalog=Catalog.load(SHIPPED_CATALOG),
    routes=Routes({}),
    policy=AcceptPolicy(sender=Mailbox("mail", "mailkeep.org"), rules=RULES, stub=True, auth_expiry_s=900),
    on_waiting=lambda: None,
    right_of_way=RightOfWay(),
)
"""Only its pure half is used here: from command to delivery."""

odd_text = st.text(max_size=40) | st.sampled_from(
    [
        "",
        "\0",
        "\x1e",
        "\x1f",
        "\ud800",
        "=?utf-8?q?a=0Ab?=",
        "a\r\nBcc: x@y.org",
        "\u2028",
        "9" * 400,
        "x" * 3000,
    ]
)
numbers = st.sampled_from(
    [0, -1, 1, 10**12, 1_773_500_000_000, 253_402_300_799_000, 253_402_300_799_001, 2**63, 10**30]
)
junk = st.recursive(
    st.none() | st.booleans() | st.floats() | numbers | odd_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_text, inner, max_size=3),
    max_leaves=10,
)
addresses = (
    st.sampled_from(
        [
            "ann@example.org",
            "Ann <ann@example.org>",
            '"A, B" <ann@example.org>',
            "jörg@exämple.org",
            '"a b"@example.org',
            "ann@sinkhole.test",
            "ann@example.invalid",
            "ann",
            "a@b",
            f"{'x' * 65}@example.org",
            "ann@example.org\r\nRCPT TO:<eve@example.org>",
        ]
    )
    | odd_text
)
rendered = st.fixed_dictionaries(
    {"to": st.lists(addresses, max_size=3)},
    optional={
        "cc": st.lists(addresses, max_size=2) | junk,
        "bcc": st.lists(addresses, max_size=2) | junk,
        "reply_to": st.lists(addresses, max_size=2) | junk,
        "subject": odd_text | junk,
        "text": odd_text | junk,
        "html": odd_text | junk,
        "attachments": junk
        | st.lists(
            st.fixed_dictionaries(
                {"filename": odd_text, "content": st.sampled_from(["", "aGk=", "=", "aGk"]) | odd_text},
                optional={
                    "content_type": st.sampled_from(["text/plain", "multipart/mixed", "x"]) | odd_text,
                    "content_id": odd_text,
                },
            ),
            max_size=2,
        ),
    },
)
templated = st.fixed_dictionaries(
    {
        "to": st.lists(addresses, max_size=2),
        "template_id": st.sampled_from(["login-code", "welcome", "../x"]) | odd_text,
    },
    optional={
        "locale": st.sampled_from(["en", "de-AT", "zh-Hant-TW", "x-private", "en-" + "a-" * 40]) | odd_text,
        "variables": st.just(SIGNED) | st.dictionaries(st.sampled_from(["code", "name"]), junk) | junk,
    },
)
payloads = st.one_of(rendered, templated, junk).map(
    lambda value: json.dumps(value).encode("utf-8", "replace")
)
values = {
    "delivery_id": st.just(DELIVERY_ID) | odd_text,
    "source": st.sampled_from(
        ["notification", "api", "sql", "authsession", "smtp", "send", "operator_resend"]
    )
    | odd_text,
    "payload_mode": st.sampled_from(["rendered", "template", "raw"]) | odd_text,
    "idempotency_key": st.just("order-1") | odd_text,
    "requested_at_ms": numbers.map(str) | odd_text,
    "payload_json": payloads | st.binary(max_size=60),
    "class": st.sampled_from(["auth", "relay", "transactional", "x"]) | odd_text,
    "guarantee": st.sampled_from(["at_most_once", "x"]) | odd_text,
    "expires_at_ms": numbers.map(str) | odd_text,
    "send_at_ms": numbers.map(str) | odd_text,
    "supersede_key": odd_text,
    "traceparent": st.just("00-" + "a" * 32 + "-" + "b" * 16 + "-01") | odd_text,
}


def to_bytes(value):
    """Return what a producer may have sent for `value`, lone surrogates among it."""
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")


likely = {name: values[name] for name in REQUIRED_OF_STREAM}
entries = st.builds(
    lambda fields, strays: {name.encode(): to_bytes(value) for name, value in fields.items()} | strays,
    st.fixed_dictionaries(likely, optional={name: values[name] for name in OPTIONAL}),
    st.just({}) | st.dictionaries(st.binary(max_size=200), st.binary(max_size=50), max_size=3),
)


def prepare(fields):
    """Go the whole pure way from an entry to a delivery."""
    request = parse_entry(fields, 100_000)
    delivery_id = parse_delivery_id(request.delivery_id, NOW_S)
    command = parse_request(request, RULES)
    return ACCEPT.prepare(
        command, key=request.idempotency_key, delivery_id=delivery_id, traceparent=request.traceparent
    )


def good(**changes):
    """Return the fields of a good entry, changed."""
    fields = {
        "delivery_id": DELIVERY_ID,
        "source": "api",
        "payload_mode": "rendered",
        "idempotency_key": "k",
        "requested_at_ms": "1",
        "payload_json": '{"to": ["ann@example.org"], "subject": "s", "text": "t"}',
    } | changes
    return {name.encode(): to_bytes(value) for name, value in fields.items()}


@settings(max_examples=200, deadline=None)
@given(entries)
@example(good())
@example(good(**{"class": "auth"}, send_at_ms="253402300799000"))
@example(good(payload_json='{"to": ["ann@example.org"], "subject": "\\ud800", "text": "t"}'))
@example(good(payload_json='{"to": ["ann@example.org"], "\\ud800": 1}'))
@example(good(payload_json='{"to": ["ann@example.org"], "\\u0000": 1}'))
def test_an_entry_is_prepared_or_refused_with_a_record_that_can_be_kept(fields):
    """No bytes at all make anything but a delivery or a `CommandError`; its record holds text that PostgreSQL takes."""
    try:
        assert isinstance(prepare(fields), Prepared)
    except CommandError as fault:
        record = malformed(Intake.STREAM, "1-1", fields, fault)
        for text in (record.field, record.message, record.delivery_id, record.source):
            assert text is None or "\0" not in text
            (text or "").encode()
        if not record.cut:
            assert raw_fields(record.raw) == fields


def test_the_good_entry_of_these_properties_is_prepared():
    """The generators start from something that is taken, or the properties would only test refusals."""
    new = prepare(good()).new
    assert (str(new.id), new.idempotency_key) == (DELIVERY_ID, "k")


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*values, "payload"]) | odd_text, junk, max_size=8))
def test_a_json_object_is_taken_apart_or_its_fault_is_told(command):
    """Any object that jsonb may hold becomes flat fields, beside a fault or fit to be parsed."""
    text = json.dumps(command, allow_nan=True).replace("NaN", "0").replace("Infinity", "1")
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return  # not in a jsonb either: lone surrogates
    fields, fault = entry_of_json(text.encode())
    assert all(isinstance(part, bytes) for pair in fields.items() for part in pair)
    if fault is None:
        with contextlib.suppress(CommandError):
            prepare(fields)


@given(st.dictionaries(st.binary(max_size=300), st.binary(max_size=4000), max_size=MAX_FIELDS + 5))
def test_what_is_kept_of_an_entry_is_bounded(fields):
    """However many and however large the fields are, a record stays within its bounds, and says so when it lost something."""
    record = malformed(Intake.STREAM, "1-1", fields, CommandError("invalid_field", "f", "m"))
    assert len(record.raw) <= MAX_RAW_BYTES + MAX_FIELDS * (MAX_NAME_BYTES + 16)
    assert record.cut == (raw_fields(record.raw) != fields)
