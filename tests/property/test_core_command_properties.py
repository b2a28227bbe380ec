"""Commands and their fingerprint: equal exactly for equal meaning, and no request breaks the parser."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mailkeep.core.address import Mailbox
from mailkeep.core.command import (
    Attachment,
    Command,
    CommandError,
    CommandRules,
    DeliveryRequest,
    FailureCode,
    RenderedContent,
    TemplateContent,
    parse_request,
)
from mailkeep.core.delivery import DeliveryClass, Guarantee, Source
from mailkeep.core.idempotency import address_hash, fingerprint

RULES = CommandRules()
KEY = b"k" * 32
SOME_TEXT = st.text(max_size=30)
NAMES = st.text("abcdefgh_", min_size=1, max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | SOME_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
ADDRESSES = st.builds(
    "{}@{}.org".format, st.text("abcdef", min_size=1, max_size=5), st.text("ghij", min_size=1, max_size=5)
)


def _mark(document: dict[str, Any]) -> bytes:
    request = msgspec.json.decode(msgspec.json.encode(document), type=DeliveryRequest)
    return fingerprint(parse_request(request, RULES), KEY)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a request that is taken, as JSON data."""
    payload: dict[str, Any] = {"to": draw(st.lists(ADDRESSES, min_size=1, max_size=3))}
    for name in ("cc", "bcc", "reply_to"):
        if draw(st.booleans()):
            payload[name] = draw(st.lists(ADDRESSES, max_size=2))
    document: dict[str, Any] = {"payload": payload}
    if draw(st.booleans()):
        document["payload_mode"] = "rendered"
        payload |= {
            "subject": draw(st.text("abc ", max_size=10)),
            "text": draw(st.text("abc\n", max_size=10)),
        }
    else:
        document["payload_mode"] = "template"
        payload |= {"template_id": "welcome", "locale": draw(st.sampled_from(["en", "pt-BR", "zh-Hant-HK"]))}
        payload["variables"] = draw(
            st.dictionaries(NAMES, st.text("xyz", max_size=5) | st.integers(0, 9), max_size=4)
        )
    for name, values in (
        ("class", st.sampled_from(["auth", "transactional", "relay"])),
        ("guarantee", st.sampled_from(["at_least_once", "at_most_once"])),
        ("source", st.sampled_from(["authsession", "notification", "api", "sql"])),
        ("supersede_key", st.text("abc", min_size=1, max_size=5)),
        ("send_at_ms", st.integers(0, 1000)),
        ("expires_at_ms", st.integers(1001, 2000)),
    ):
        if draw(st.booleans()):
            document[name] = draw(values)
    return document


def _shuffled(value: Any, order: random.Random) -> Any:
    match value:
        case dict():
            names = list(value)
            order.shuffle(names)
            return {name: _shuffled(value[name], order) for name in names}
        case list():
            return [_shuffled(child, order) for child in value]
        case _:
            return value


@given(documents(), st.randoms(use_true_random=False))
def test_the_order_of_members_means_nothing(document, order):
    """The same members in another order, at any depth, are the same command."""
    assert _mark(document) == _mark(_shuffled(document, order))


@given(documents())
def test_what_is_about_the_request_is_not_of_the_command(document):
    """Key, trace, id and time of the request may differ between two calls that mean the same."""
    again = document | {
        "idempotency_key": "other",
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
        "requested_at_ms": 7,
        "delivery_id": "0197f3c2-0000-7000-8000-000000000000",
    }
    assert _mark(document) == _mark(again)


@given(documents())
def test_spelling_means_nothing(document):
    """The case of a locale or a domain, and a default that is written out, are not another command."""
    again = msgspec.json.decode(msgspec.json.encode(document))
    again["payload"]["to"] = [
        f"{text.partition('@')[0]}@{text.partition('@')[2].upper()}" for text in again["payload"]["to"]
    ]
    if "locale" in again["payload"]:
        again["payload"]["locale"] = again["payload"]["locale"].swapcase()
    again.setdefault("source", "api")
    again.setdefault("class", "auth" if again["source"] == "authsession" else "transactional")
    again.setdefault("guarantee", "at_least_once")
    for name in ("cc", "bcc", "reply_to"):
        again["payload"].setdefault(name, [])
    assert _mark(document) == _mark(again)


CHANGES: dict[str, Any] = {
    "source": "sql",
    "class": "relay",
    "guarantee": "at_most_once",
    "expires_at_ms": 5000,
    "send_at_ms": 1000,
    "supersede_key": "other",
}
PAYLOAD_CHANGES: dict[str, Any] = {
    "to": ["zoe@example.org"],
    "cc": ["zoe@example.org"],
    "bcc": ["zoe@example.org"],
    "reply_to": ["zoe@example.org"],
    "attachments": [{"filename": "a", "content": "eA=="}],
    "list_unsubscribe": "https://example.org/u",
}
RENDERED_CHANGES: dict[str, Any] = {"subject": "Other", "text": "Other", "html": "<p>Other</p>"}
TEMPLATE_CHANGES: dict[str, Any] = {"template_id": "other", "locale": "fr", "variables": {"other": 1}}


@given(documents(), st.data())
def test_any_change_of_meaning_is_another_command(document, data):
    """Each field of a command counts: with another value it has another fingerprint."""
    own = RENDERED_CHANGES if document["payload_mode"] == "rendered" else TEMPLATE_CHANGES
    name, value = data.draw(st.sampled_from([*CHANGES.items(), *PAYLOAD_CHANGES.items(), *own.items()]))
    changed = dict(document) | {"payload": dict(document["payload"])}
    target = changed if name in CHANGES else changed["payload"]
    before, target[name] = target.get(name), value
    assume(before != value)
    assert _mark(document) != _mark(changed)


ANN, ZOE = Mailbox("ann", "example.org"), Mailbox("zoe", "example.org")
VALUES: dict[str, tuple[Any, Any]] = {
    "source": (Source.API, Source.SQL),
    "delivery_class": (DeliveryClass.AUTH, DeliveryClass.RELAY),
    "guarantee": (Guarantee.AT_LEAST_ONCE, Guarantee.AT_MOST_ONCE),
    "sender": (None, Mailbox("ann", "example.org")),
    "content": (RenderedContent("a", "b", None), TemplateContent("a", "b", {})),
    "to": ((ANN,), (ZOE,)),
    "cc": ((), (ZOE,)),
    "bcc": ((), (ZOE,)),
    "reply_to": ((), (ZOE,)),
    "attachments": ((), (Attachment("a", b"b"),)),
    "expires_at_ms": (None, 1),
    "expires_in_s": (None, 1),
    "send_at_ms": (None, 1),
    "supersede_key": (None, "k"),
    "list_unsubscribe": (None, "https://example.org/u"),
}


@pytest.mark.parametrize("name", Command.__struct_fields__)
def test_every_field_of_a_command_is_fingerprinted(name):
    """No field is left out: replacing any one of them in the command changes the fingerprint."""
    plain = Command(**{field: values[0] for field, values in VALUES.items()})
    changed = msgspec.structs.replace(plain, **{name: VALUES[name][1]})
    assert fingerprint(changed, KEY) != fingerprint(plain, KEY)


@given(documents(), st.binary(min_size=1, max_size=64), st.binary(min_size=1, max_size=64))
def test_the_fingerprint_is_keyed(document, one, other):
    """Another deployment's key gives another fingerprint, so that a short code can't be guessed from it."""
    command = parse_request(msgspec.convert(document, DeliveryRequest), RULES)
    assert (fingerprint(command, one) == fingerprint(command, other)) == (
        one.ljust(64, b"\0") == other.ljust(64, b"\0")
    )
    assert len(fingerprint(command, one)) == 16


@given(st.dictionaries(NAMES, JSON, max_size=5))
def test_any_json_variables_are_taken_or_refused(variables):
    """Whatever JSON a producer sends as variables, it is refused by a code or has a fingerprint."""
    document = {
        "payload_mode": "template",
        "payload": {"to": ["ann@example.org"], "template_id": "a", "locale": "en"},
    }
    document["payload"]["variables"] = variables
    try:
        _mark(document)
    except CommandError as fault:
        assert fault.code in (FailureCode.INVALID_FIELD, FailureCode.TOO_LARGE)


@given(
    st.fixed_dictionaries(
        {
            "payload_mode": st.sampled_from(["rendered", "template"]) | SOME_TEXT,
            "payload": st.fixed_dictionaries(
                {"to": st.lists(ADDRESSES | SOME_TEXT, max_size=3)},
                optional={
                    "cc": st.lists(SOME_TEXT, max_size=2),
                    "subject": SOME_TEXT,
                    "text": SOME_TEXT,
                    "template_id": SOME_TEXT,
                    "locale": SOME_TEXT,
                    "variables": st.dictionaries(SOME_TEXT, JSON, max_size=3),
                    "attachments": st.lists(
                        st.builds(Attachment, SOME_TEXT.filter(bool), st.binary(max_size=5), SOME_TEXT),
                        max_size=2,
                    ),
                },
            ),
        },
        optional={
            "source": SOME_TEXT,
            "class": SOME_TEXT,
            "guarantee": SOME_TEXT,
            "idempotency_key": SOME_TEXT,
            "supersede_key": SOME_TEXT,
            "traceparent": SOME_TEXT,
        },
    )
)
def test_no_request_breaks_the_parser(document):
    """A request of the right shape with any content is taken or refused by a code; nothing else is raised."""
    try:
        parse_request(msgspec.convert(document, DeliveryRequest), RULES)
    except CommandError as fault:
        assert fault.code in FailureCode


@given(ADDRESSES, st.binary(min_size=1, max_size=64))
def test_an_address_is_found_in_any_case(address, key):
    """An operator finds a recipient whatever the case it was written in; the hash is keyed and bounded."""
    assert address_hash(address.upper(), key) == address_hash(address, key)
    assert len(address_hash(address, key)) == 12
