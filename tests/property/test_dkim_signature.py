"""Signatures against a second library: what the writer makes verifies, and any change that matters breaks it."""

import base64
import hashlib
import re
from datetime import UTC, datetime

import dkim
import msgspec
import pytest
from dkim.canonicalization import Relaxed
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mailkeep.core.address import Mailbox
from mailkeep.core.command import Attachment
from mailkeep.dkim import signature
from mailkeep.dkim.keys import new_private_key, record_name, record_value
from mailkeep.dkim.signature import ALWAYS, IF_PRESENT, Algorithm, SigningKey, signatures
from mailkeep.templates.message import MessageParts, build_message

KEYS = tuple(
    SigningKey("example.org", f"key-{algorithm}", new_private_key(algorithm)) for algorithm in Algorithm
)
DNS = {f"{record_name(key)}.".encode(): record_value(key).encode() for key in KEYS}
SIGNED_AT_S = 1_767_323_045
PRINTABLE = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029")
SUBJECTS = st.text(PRINTABLE, max_size=200) | st.sampled_from(
    ["", " two  spaces ", "=?utf-8?q?a?=", "word " * 300, "é" * 200, "a" * 900]
)
BODIES = st.text(st.characters(exclude_categories=["Cs"]), max_size=300) | st.sampled_from(
    ["", "\n", " \n", "\n\n\n", "x  \t y \n\t\n\n", "\r\n \r\n", ".\n..\n", "a\n \n \n", "é\t \n\n"]
)
MAILBOXES = st.builds(
    Mailbox,
    local=st.sampled_from(["ann", "b.o", "jürgen", '"a  b"']),
    domain=st.sampled_from(["example.org", "xn--bcher-kva.example"]),
    display=st.text(PRINTABLE, max_size=60),
)
FURTHER = {
    "Auto-Submitted": "auto-generated",
    "List-Unsubscribe": f"<https://example.org/u?t={'x' * 700}>",
    "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
}
PARTS = st.builds(
    MessageParts,
    message_id=st.just("0190@example.org"),
    date=st.just(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
    sender=st.builds(Mailbox, st.just("mail"), st.just("example.org"), st.text(PRINTABLE, max_size=60)),
    to=st.lists(MAILBOXES, min_size=1, max_size=20).map(tuple),
    subject=SUBJECTS,
    text=BODIES,
    html=st.none() | BODIES,
    cc=st.lists(MAILBOXES, max_size=2).map(tuple),
    reply_to=st.lists(MAILBOXES, max_size=2).map(tuple),
    attachments=st.lists(st.builds(Attachment, st.just("a  b.txt"), st.binary(max_size=200)), max_size=1).map(
        tuple
    ),
    headers=st.sampled_from([(), tuple(FURTHER.items())]),
)
PLAIN = MessageParts(
    message_id="0190@example.org",
    date=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    sender=Mailbox("mail", "example.org", "Mail"),
    to=(Mailbox("ann", "example.org"),),
    cc=(Mailbox("bo", "example.org"),),
    reply_to=(Mailbox("desk", "example.org"),),
    subject="A subject of three words",
    text="Eins, zwei, drei,\n  vier\n\n",
    html="<p>é</p>",
    headers=tuple(FURTHER.items()),
)


def signed(parts: MessageParts) -> bytes:
    """Return the message of `parts` with both signatures."""
    message = build_message(parts, "seed")
    return signatures(message, KEYS, SIGNED_AT_S) + message


def verdicts(message: bytes) -> list[bool]:
    """Return what dkimpy says of each signature of `message`; the records are those that `mailkeep dkim` shows."""
    return [_verified(message, number) for number in range(message.count(b"DKIM-Signature:"))]


def _verified(message: bytes, number: int) -> bool:
    try:
        return bool(dkim.DKIM(message).verify(idx=number, dnsfunc=lambda name, timeout=5: DNS.get(name)))
    except dkim.DKIMException:  # as it says of some that do not verify
        return False


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.sampled_from([b"", b"", b" ", b"a", b"b \t ", b" \tc  d"]), max_size=40),
    piece_bytes=st.integers(1, 9),
)
def test_a_body_is_hashed_alike_in_pieces(lines: list[bytes], piece_bytes: int) -> None:
    """Wherever a body is cut, spaces and empty lines at its end count as dkimpy says."""
    body = b"".join(line + b"\r\n" for line in lines)
    expected = hashlib.sha256(Relaxed.canonicalize_body(body)).digest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signature, "PIECE_BYTES", piece_bytes)
        found = signatures(b"From: a@example.org\r\n\r\n" + body, KEYS[:1], SIGNED_AT_S)
    assert b"bh=" + base64.b64encode(expected) in found


@settings(max_examples=60, deadline=None)  # dkimpy takes milliseconds for each
@given(parts=PARTS)
def test_whatever_the_writer_makes_verifies(parts: MessageParts) -> None:
    """Both signatures of any message verify, and what is put before it fits the wire."""
    message = signed(parts)
    assert verdicts(message) == [True, True]
    head = message.partition(b"\r\nDate:")[0]
    assert head.isascii()
    assert all(len(line) <= 78 for line in head.split(b"\r\n"))
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", head)


@settings(max_examples=60, deadline=None)
@given(parts=PARTS, data=st.data())
def test_a_changed_octet_of_the_body_breaks_both(parts: MessageParts, data: st.DataObject) -> None:
    """Another octet anywhere in the body, but for white space, is noticed."""
    message = signed(parts)
    start = message.index(b"\r\n\r\n") + 4
    place = data.draw(st.integers(start, len(message) - 1))
    assume(message[place] not in b" \t\r\n")
    other = message[:place] + (b"X" if message[place] != ord("X") else b"Y") + message[place + 1 :]
    assert verdicts(other) == [False, False]


@settings(max_examples=60, deadline=None)
@given(parts=PARTS, data=st.data())
def test_a_changed_octet_of_a_signed_header_breaks_both(parts: MessageParts, data: st.DataObject) -> None:
    """Another octet in the value of any header of the message, but for white space, is noticed."""
    message = signed(parts)
    first, end = message.index(b"\r\nDate: ") + 2, message.index(b"\r\n\r\n")
    fields = [
        (first + found.start(1), first + found.end(1))
        for found in re.finditer(rb"(?:^|(?<=\r\n))[!-9;-~]+:((?:[^\r]|\r\n[ \t])*)", message[first:end])
    ]
    start, stop = data.draw(st.sampled_from(fields))
    places = [place for place in range(start, stop) if message[place] not in b" \t\r\n"]
    assume(places)
    place = data.draw(st.sampled_from(places))
    other = message[:place] + (b"X" if message[place] != ord("X") else b"Y") + message[place + 1 :]
    assert verdicts(other) == [False, False]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_refolded_headers_still_verify(data: st.DataObject) -> None:
    """What relays do with white space in headers and at line ends of the body (section 3.4) breaks nothing."""
    message = signed(PLAIN)
    head, _, body = message.partition(b"\r\n\r\n")
    space = st.sampled_from([b" ", b"\t", b"\r\n ", b"  \r\n\t "])
    own, fields = head[: head.index(b"\r\nDate:")], head[head.index(b"\r\nDate:") :]
    fields = re.sub(rb"(?<=[^:\r\n ]) (?=[^ \r\n])", lambda _: data.draw(space), fields)
    body = re.sub(rb"(?=\r\n)", lambda _: data.draw(st.sampled_from([b"", b" ", b"\t  "])), body)
    other = own + fields + b"\r\n\r\n" + body + b"\r\n" * data.draw(st.integers(0, 3))
    assert verdicts(other) == [True, True]


def test_every_header_of_ours_is_signed() -> None:
    """No header of a message that has them all is left out of `h=`."""
    head = signed(PLAIN).partition(b"\r\n\r\n")[0].decode().lower()
    covered = set(re.sub(r"\s", "", re.findall(r"h=([^;]*)", head)[0]).split(":"))
    names = set(re.findall(r"^([!-9;-~]+):", head, re.MULTILINE))
    assert names - covered == {"dkim-signature"}


@pytest.mark.parametrize("name", [*ALWAYS, *IF_PRESENT])
def test_a_second_header_of_a_signed_name_breaks_both(name: str) -> None:
    """Nobody can add another From, Subject, Reply-To … above or below ours (section 8.15)."""
    message = signed(msgspec.structs.replace(PLAIN, html=None))  # of one part: all of them stand in it
    assert f"\r\n{name}:" in message.partition(b"\r\n\r\n")[0].decode().lower()
    added = f"{name}: someone@else.example\r\n".encode()
    first = message.index(b"\r\nDate:") + 2
    for other in (
        added + message,
        message[:first] + added + message[first:],
        message.replace(b"\r\n\r\n", b"\r\n" + added + b"\r\n", 1),
    ):
        assert verdicts(other) == [False, False]


@pytest.mark.parametrize("name", ["Cc", "Reply-To"])
def test_a_header_that_was_not_there_can_not_be_added(name: str) -> None:
    """Names that readers see or answer to are covered also where the message has none."""
    parts = MessageParts("0@b.c", PLAIN.date, PLAIN.sender, PLAIN.to, "Subject", "Text\n")
    message = signed(parts)
    assert verdicts(message) == [True, True]
    assert verdicts(f"{name}: someone@else.example\r\n".encode() + message) == [False, False]


def test_relays_may_add_what_is_theirs() -> None:
    """Trace headers and a list's own unsubscribe header, where we have none, leave the signatures whole."""
    message = signed(MessageParts("0@b.c", PLAIN.date, PLAIN.sender, PLAIN.to, "Subject", "Text\n"))
    added = (
        b"Received: from a by b; Fri, 2 Jan 2026 03:04:05 +0000\r\nList-Unsubscribe: <https://l.example>\r\n"
    )
    assert verdicts(added + message) == [True, True]


def test_signatures_of_other_keys_do_not_verify() -> None:
    """The records are looked at: what other private keys signed under these names is refused."""
    message = build_message(PLAIN, "seed")
    others = [msgspec.structs.replace(key, private_key=new_private_key(key.algorithm)) for key in KEYS]
    assert verdicts(signatures(message, others, SIGNED_AT_S) + message) == [False, False]


def test_equal_input_gives_equal_signatures() -> None:
    """I9: both algorithms are deterministic; only the instant and the keys make a difference."""
    message = build_message(PLAIN, "seed")
    first = signatures(message, KEYS, SIGNED_AT_S)
    assert first == signatures(message, KEYS, SIGNED_AT_S)
    assert first != signatures(message, KEYS, SIGNED_AT_S + 1)
    assert signatures(message, (), SIGNED_AT_S) == b""
