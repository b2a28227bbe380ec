"""JSON bodies: what is not exactly one plain JSON text is refused, and faults name the field."""

import base64
import json
import random
from typing import Annotated
from uuid import UUID

import msgspec
import pytest

from mailkeep.aside import PIECE_BYTES
from mailkeep.core.command import CommandError, DeliveryRequest, FailureCode
from mailkeep.core.delivery import DeliveryClass
from mailkeep.intake import body as json_body
from mailkeep.intake.body import MIN_FILE_CHARS, check_content_type, check_json, decode_json, decode_large
from mailkeep.intake.http import _with_files
from mailkeep.intake.problems import ProblemError

DELIVERY = msgspec.json.Decoder(DeliveryRequest)


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/json",
        b"application/json; charset=utf-8",
        b'Application/JSON;charset="UTF-8"',
    ],
)
def test_plain_json_is_read(content_type):
    """JSON may be announced in any spelling that means UTF-8."""
    check_content_type({b"content-type": content_type, b"content-encoding": b"identity"})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"content-type": b"text/plain"},
        {b"content-type": b"application/jsonp"},
        {b"content-type": b"application/json; charset=utf-16"},
        {b"content-type": b"application/json, text/plain"},
        {b"content-type": b"application/json", b"content-encoding": b"gzip"},
    ],
)
def test_other_types_and_codings_are_refused(headers):
    """Other types, other charsets and compressed bodies are a 415."""
    with pytest.raises(ProblemError) as caught:
        check_content_type(headers)
    assert caught.value.problem.status == 415


@pytest.mark.parametrize("body", [b"{}", b"[1, 2.5, null]", b'"\xc3\xa9"', b'{"a": {"a": 1}, "b": {"a": 1}}'])
def test_one_json_text_passes(body):
    """JSON that every parser reads alike passes, the same name in different objects too."""
    check_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{} {}",
        b'{"a": 1,}',
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 1}',
        b'{"a": 1, "\\u0061": 2}',
        b'{"x": [{"a": 1, "a": 2}]}',
        b'{"a": "\xff"}',
        b'{"a": "\x01"}',
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"1" * 5000,
    ],
)
def test_anything_else_is_malformed(body):
    """Truncation, doubled members, NaN, other encodings, control characters, depth and huge numbers are refused."""
    with pytest.raises(CommandError) as caught:
        check_json(body)
    assert caught.value.code is FailureCode.INVALID_JSON
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"[]", "invalid_field", ""),
        (b'{"payload_mode": "rendered"}', "missing_field", "payload"),
        (b'{"payload": {}, "payload_mode": "rendered"}', "missing_field", "payload.to"),
        (b'{"payload": {"to": [1]}, "payload_mode": "rendered"}', "invalid_field", "payload.to[0]"),
        (b'{"payload": {"to": [], "x": 1}, "payload_mode": "rendered"}', "unknown_field", "payload.x"),
        (
            b'{"payload": {"to": []}, "payload_mode": "rendered", "send_at_ms": -1}',
            "invalid_field",
            "send_at_ms",
        ),
        (
            b'{"payload": {"to": []}, "payload_mode": "rendered", "send_at_ms": 1.5}',
            "invalid_field",
            "send_at_ms",
        ),
        (
            b'{"payload": {"to": [], "attachments": [{"filename": "a", "content": "%"}]}}',
            "invalid_field",
            "payload.attachments[0].content",
        ),
        (b'{"payload": {"to": [], "variables": {"a": 1e999}}}', "invalid_field", "payload.variables[]"),
        (b'{"payload_mode": "\\ud800"}', "invalid_json", ""),
        (b'{"payload": {"to": [], "a` - at `$.b": 1}}', "unknown_field", "payload.a` - at `$.b"),
    ],
)
def test_faults_name_the_field(body, code, field):
    """The decoder's complaints become failure codes with the path of the member."""
    with pytest.raises(CommandError) as caught:
        decode_json(body, DELIVERY)
    assert (caught.value.code, caught.value.field) == (code, field)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (DeliveryClass, b'"ann@example.org"'),
        (UUID, b'"ann@example.org"'),
        (Annotated[str, msgspec.Meta(max_length=3)], b'"ann@example.org"'),
        (int, b'"ann@example.org"'),
    ],
)
def test_no_fault_repeats_a_value(kind, body):
    """Whatever is wrong with a value, the message does not hold it."""
    with pytest.raises(CommandError) as caught:
        decode_json(body, msgspec.json.Decoder(kind))
    assert "ann" not in f"{caught.value.field} {caught.value.message}"


# -- large ones ----------------------------------------------------------------------------------------------------

FILES = [random.Random(size).randbytes(size) for size in (50_000, 250_001, 400_002)]
TEXTS = [base64.b64encode(file).decode() for file in FILES]


def delivery(*contents, **payload):
    """Return a command with files, as JSON."""
    attachments = [{"filename": "a", "content": content} for content in contents]
    content = {"to": ["ann@example.org"], "subject": "s", "text": "t", "attachments": attachments} | payload
    return json.dumps({"payload_mode": "rendered", "payload": content})


def read(decode, body):
    """Return what `decode` makes of `body`: a value, or code, field and words of its refusal."""
    try:
        return decode(body.encode() if isinstance(body, str) else body)
    except CommandError as fault:
        return (fault.code, fault.field, fault.message)


def read_plainly(body):
    """Read a body as a small one."""
    check_json(body)
    return decode_json(body, DELIVERY)


def read_large(body):
    """Read a body as a large one."""
    return decode_large(bytearray(body), DELIVERY, _with_files)


@pytest.mark.parametrize(
    "body",
    [
        delivery(*TEXTS),
        delivery(*TEXTS).replace('"content": "', '"content"\n\t :\r "'),
        delivery(*TEXTS).replace("/", "\\/"),
        delivery(TEXTS[1], TEXTS[1]),
        delivery(TEXTS[0], "", "QQ==", TEXTS[2]),
        delivery(TEXTS[1], text='"content": "' + TEXTS[1]),
        delivery(TEXTS[1], text=TEXTS[2], html='\\"content\\": \\"'),
        delivery(TEXTS[1], text="é \ud83d\ude00 \\ \u2028"),
        delivery(template_id="t", variables={"content": TEXTS[1]}),
        delivery(TEXTS[1], template_id="t", variables={"content": TEXTS[2]}),
        delivery(TEXTS[1], template_id="t", variables={'x"content': TEXTS[2]}),
    ],
)
def test_a_large_body_means_what_a_small_one_does(body):
    """Files come out as they are, wherever and however they are written; so does all that only looks like one."""
    decoded = read(read_large, body)
    assert isinstance(decoded, DeliveryRequest)
    assert decoded == read(read_plainly, body)


BIG = TEXTS[1]


@pytest.mark.parametrize(
    "body",
    [
        delivery(BIG[:-1]),
        delivery(BIG[:-1] + "!"),
        delivery(BIG[:1000] + "=" + BIG[1000:]),
        delivery(BIG[: PIECE_BYTES - 6] + "==" + BIG[PIECE_BYTES - 4 :]),  # where a piece ends
        delivery(BIG + "===="),
        delivery(BIG[:1000] + "\n" + BIG[1000:]),
        delivery(BIG + "\ud800"),
        delivery(BIG)[:-1],
        delivery(BIG)[:100_000],
        delivery(BIG) + "x",
        delivery(BIG).replace('"content": ', '"content": 1, "content": '),
        delivery(BIG).replace('"filename": "a"', '"filename": NaN'),
        delivery(BIG).replace('"filename"', '"name"'),
        delivery(BIG).replace('"content": "', '"content": "\x01'),
        delivery(BIG).replace('"content": "', '"content" "'),
        delivery(BIG, content=BIG),
        delivery(BIG).replace('"payload_mode"', f'"content": "{BIG}", "payload_mode"'),
        delivery(BIG).encode().replace(b'"filename": "a"', b'"filename": "\xff"'),
        delivery(to=[BIG] * 2, subject=1),
    ],
)
def test_what_is_wrong_with_a_large_body_is_told_as_of_a_small_one(body):
    """The same code, field and words, positions too: nothing that a parser would refuse slips in, and no mark slips out."""
    refused = read(read_large, body)
    assert isinstance(refused, tuple)
    assert refused == read(read_plainly, body)


@pytest.mark.parametrize("slash", ["/", "\\/"])
def test_no_parser_sees_a_large_file(slash):
    """What is left for the parsers of a body with large files is small, however they are written; small ones stay."""
    files = {}
    slashes = "A" * 7 + "/" * (PIECE_BYTES + 1)  # escaped, one of them is cut where a piece ends
    texts = [*TEXTS, "A" * MIN_FILE_CHARS, slashes]
    body = delivery(*texts).replace("/", slash).encode()
    rest = b"".join(json_body._without_files(body, files))
    assert list(files.values()) == [base64.b64decode(text) for text in texts]
    assert len(rest) < 1000
    assert b"".join(json_body._without_files(b'{"content": "QUJD"}', files)) == b'{"content": "QUJD"}'
