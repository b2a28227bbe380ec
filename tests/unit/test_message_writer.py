"""The message writer: what it refuses, how it nests and encodes. Round trips are in the property tests."""

import re
from base64 import b64decode, encodebytes
from datetime import UTC, datetime
from email import message_from_bytes, policy
from random import randbytes
from typing import Any

import pytest

from mailkeep.core.address import Mailbox
from mailkeep.core.command import Attachment
from mailkeep.templates.message import LINES_AT_ONCE, MessageError, MessageParts, build_message

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ANN = Mailbox("ann", "example.org", "Ann")


def _build(*, seed: str = "0190", **given: Any) -> bytes:
    parts: dict[str, Any] = {
        "message_id": "0190@example.org",
        "date": WHEN,
        "sender": Mailbox("mail", "example.org", "Mail"),
        "to": (ANN,),
        "subject": "Subject",
        "text": "Text\n",
    }
    return build_message(MessageParts(**(parts | given)), seed)


def _shape(octets: bytes) -> list[str]:
    return [part.get_content_type() for part in message_from_bytes(octets).walk()]


@pytest.mark.parametrize(
    "size", [0, 1, 56, 57, 58, *(57 * LINES_AT_ONCE * n + more for n in (1, 2) for more in (-1, 0, 1))]
)
def test_files_are_written_in_lines_of_base64(size: int) -> None:
    """However many lines are made in one go, a file is in lines of 76 characters, the last one shorter, and is what it was."""
    content = randbytes(size)
    written = _build(attachments=(Attachment("a.bin", content),)).split(b"\r\n\r\n")[-1]
    encoded = written.partition(b"--=_")[0].removesuffix(b"--")
    assert encoded == encodebytes(content).replace(b"\n", b"\r\n")


@pytest.mark.parametrize(
    "evil", ["a\r\nBcc: x@y.z", "a\nb", "a\rb", "a\x00b", "a\x0bb", "a\x85b", "a\u2028b", "a\ud800b"]
)
@pytest.mark.parametrize(
    "place", ["subject", "display", "local", "header", "filename", "message_id", "content_id"]
)
def test_control_characters_are_refused(place: str, evil: str) -> None:
    """No line break or control character gets into any header, though intake should have refused it before."""
    places: dict[str, dict[str, Any]] = {
        "subject": {"subject": evil},
        "display": {"to": (Mailbox("ann", "example.org", evil),)},
        "local": {"cc": (Mailbox(evil, "example.org"),)},
        "header": {"headers": (("X-Note", evil),)},
        "filename": {"attachments": (Attachment(evil, b""),)},
        "message_id": {"message_id": f"{evil}@example.org"},
        "content_id": {"html": "x", "attachments": (Attachment("a", b"", content_id=evil),)},
    }
    with pytest.raises(MessageError) as refusal:
        _build(**places[place])
    assert evil not in str(refusal.value)


@pytest.mark.parametrize(
    "name", ["Bcc", "bcc", "To", "Subject", "Content-Type", "MIME-Version", "X Y", "X:", "", "X\nY", "Ü"]
)
def test_further_headers_can_not_replace_the_writers_own(name: str) -> None:
    """A further header neither repeats one of the message's own nor has a malformed name."""
    with pytest.raises(MessageError):
        _build(headers=((name, "value"),))


@pytest.mark.parametrize("domain", ["bücher.example", "a b", "x>", ""])
def test_domains_are_a_labels(domain: str) -> None:
    """A domain that is not written as A-labels is refused."""
    with pytest.raises(MessageError):
        _build(to=(Mailbox("ann", domain),))


@pytest.mark.parametrize("local", ["a b", "a,b", "a@b", "<a", '"a', ""])
def test_malformed_local_parts_are_refused(local: str) -> None:
    """A local part that could end its address early is refused; a quoted one is not."""
    with pytest.raises(MessageError):
        _build(to=(Mailbox(local, "example.org"),))
    assert b'"a b"@example.org' in _build(to=(Mailbox('"a b"', "example.org"),))


def test_a_date_needs_its_offset() -> None:
    """A date without an offset is refused."""
    with pytest.raises(MessageError):
        _build(date=WHEN.replace(tzinfo=None))


def test_content_is_needed() -> None:
    """A message with neither text nor html is refused, and so is text that is no Unicode."""
    with pytest.raises(MessageError):
        _build(text=None)
    with pytest.raises(MessageError):
        _build(text="\ud800")


def test_a_subject_that_looks_encoded_is_encoded_anew() -> None:
    """Text in the form of an encoded word reads as that text, so that it hides no header (CVE-2024-6923)."""
    subject = "=?utf-8?q?hello=0ABcc:_evil=40x.test?="
    octets = _build(subject=subject, to=(Mailbox("ann", "example.org", subject),))
    assert b"evil" not in octets
    message = message_from_bytes(octets, policy=policy.default)
    assert message["Subject"] == subject
    assert message["Bcc"] is None


def test_encoded_words_hold_whole_characters() -> None:
    """Each encoded word can be decoded by itself, whatever width its characters have."""
    head = _build(subject="aé日👩" * 40).partition(b"\r\n\r\n")[0].decode()
    words = re.findall(r"=\?utf-8\?b\?([^?]+)\?=", head)
    assert len(words) > 1
    assert "".join(b64decode(word).decode() for word in words) == "aé日👩" * 40


def test_parts_nest_as_they_should() -> None:
    """Files to keep lie around what the html shows, which lies around text and html."""
    files = (Attachment("a.pdf", b"pdf", "application/pdf"), Attachment("b.png", b"png", "image/png", "logo"))
    octets = _build(html="<img src='cid:logo'>", attachments=files)
    assert _shape(octets) == [
        "multipart/mixed",
        "multipart/related",
        "multipart/alternative",
        "text/plain",
        "text/html",
        "image/png",
        "application/pdf",
    ]
    assert _shape(_build()) == ["text/plain"]
    assert _shape(_build(attachments=files)) == [
        "multipart/mixed",
        "text/plain",
        "application/pdf",
        "image/png",
    ]


@pytest.mark.parametrize("kind", ["message/rfc822", "Multipart/Mixed"])
def test_composite_attachments_are_opaque(kind: str) -> None:
    """A file of a composite type goes as octets, since such types must not be base64."""
    assert _shape(_build(attachments=(Attachment("a.eml", b"x", kind),)))[-1] == "application/octet-stream"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("plain\n", b"7bit"),
        ("x" * 78, b"7bit"),
        ("x" * 79, b"quoted-printable"),
        ("Viele Grüße aus dem Norden des Landes\n", b"quoted-printable"),
        ("日本語のお知らせ\n", b"base64"),
        ("bell\x07", b"quoted-printable"),
    ],
)
def test_the_encoding_follows_the_content(text: str, encoding: bytes) -> None:
    """What is seven-bit and short-lined goes as it is, mostly Latin text stays readable, the rest is base64."""
    assert b"Content-Transfer-Encoding: " + encoding + b"\r\n" in _build(text=text)


def test_a_boundary_does_not_occur_in_the_content() -> None:
    """Text that holds the boundary of its own delivery gets another one."""
    first = re.search(rb'boundary="([^".]+)\.a"', _build(html="<p>x</p>"))
    assert first
    octets = _build(text=f"--{first[1].decode()}.a--\n", html="<p>x</p>")
    assert octets.count(first[1]) == 1
    assert _shape(octets) == ["multipart/alternative", "text/plain", "text/html"]
    assert first[1] not in _build(html="<p>x</p>", seed="0191")


def test_html_alone_gets_a_text() -> None:
    """Mail given as html only says the same in text."""
    parts = list(message_from_bytes(_build(text=None, html="<p>Hello <b>Ann</b></p>")).walk())
    assert parts[1].get_payload() == "Hello Ann"


def test_long_lists_of_addresses_fold() -> None:
    """A hundred recipients stand in short lines of one header."""
    to = tuple(Mailbox(f"person{number}", "example.org", "A Person, Esq.") for number in range(100))
    head = _build(to=to).partition(b"\r\n\r\n")[0]
    assert max(map(len, head.split(b"\r\n"))) <= 78
    assert head.count(b"To:") == 1
    assert len(message_from_bytes(head, policy=policy.default)["To"].addresses) == 100


@pytest.mark.parametrize("display", ['"' * 900, "A, " + "b" * 890, "日" * 200])
def test_long_names_fold(display: str) -> None:
    """A name of any length and kind stands in short lines and comes back."""
    octets = _build(sender=Mailbox("mail", "example.org", display))
    assert max(map(len, octets.split(b"\r\n"))) <= 78
    words = re.findall(rb"=\?utf-8\?b\?([^?]+)\?=", octets)
    assert b"".join(map(b64decode, words)).decode() == display
