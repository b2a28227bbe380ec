"""The writer against the standard library's parsers: whatever goes in comes out, and nothing else does."""

import re
from datetime import UTC, datetime, timedelta, timezone
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses, parsedate_to_datetime
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from mailkeep.core.address import Mailbox
from mailkeep.core.command import MAX_URL_CHARS, UNSUBSCRIBE_URL, Attachment
from mailkeep.templates.message import MessageParts, build_message, needs_smtputf8

PRINTABLE = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029")
LINES = st.text(PRINTABLE, max_size=300)
TRICKY = st.sampled_from(
    [
        "=?utf-8?q?hello=0ABcc:_evil=40x.test?=",
        "=?utf-8?b?SGFsbG8=?= =?x",
        "a" * 2000,
        "word " * 300,
        " leading and trailing ",
        "two  spaces",
        'quote " and \\ backslash, comma; <a@b.c>',
        "é" * 200,
        "日本語のとても長い件名" * 20,
        "👩‍👩‍👧‍👦" * 30,
        "",
    ]
)
SUBJECTS = LINES | TRICKY
BODIES = st.text(st.characters(exclude_categories=["Cs"]), max_size=500) | st.sampled_from(
    [
        "x" * 3000,
        ".\n..\n. \n",
        "From me\n",
        "trailing \nspace\t\n \n",
        "a\rb\r\nc\nd",
        "\x00\x0b\x0c\x85\u2028",
        "=\n" * 50,
    ]
)
LOCALS = st.from_regex(r"[a-z0-9!#$%&'*+/=?^_`{|}~-]{1,30}(\.[a-z0-9]{1,20})?", fullmatch=True)
UTF8_LOCALS = st.from_regex(r"[a-zäöü日本]{1,20}", fullmatch=True)
DOMAINS = st.sampled_from(["example.org", "xn--bcher-kva.example", "mail." + "a" * 60 + ".example"])
DISPLAYS = st.text(PRINTABLE, max_size=120) | TRICKY
MAILBOXES = st.builds(Mailbox, local=LOCALS, domain=DOMAINS, display=DISPLAYS)
ATTACHMENTS = st.builds(
    Attachment,
    filename=st.text(PRINTABLE, min_size=1, max_size=255)
    | st.sampled_from(["r.pdf", 'a"b\\c.txt', "%41'*=?.x", " x "]),
    content=st.binary(max_size=400),
    content_type=st.sampled_from(
        ["application/pdf", "image/png", "text/csv", "message/rfc822", "multipart/mixed"]
    ),
    content_id=st.none() | st.sampled_from(["logo", "a.b@c"]),
)
DATES = st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2100, 1, 1)).map(  # noqa: DTZ001 - given an offset here
    lambda naive: naive.replace(microsecond=0, tzinfo=timezone(timedelta(hours=2)))
)
HEADER_NAMES = ["Date", "From", "To", "Subject", "Message-ID", "Auto-Submitted", "MIME-Version"]


def _written(**given_parts: object) -> bytes:
    parts: dict[str, object] = {
        "message_id": "0190@example.org",
        "date": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "sender": Mailbox("mail", "example.org"),
        "to": (Mailbox("ann", "example.org"),),
        "subject": "Subject",
        "text": "Text\n",
        "headers": (("Auto-Submitted", "auto-generated"),),
    }
    return build_message(MessageParts(**(parts | given_parts)), "seed")  # type: ignore[arg-type] # a test's parts


def _parsed(octets: bytes) -> EmailMessage:
    return message_from_bytes(octets, policy=policy.default)


def assert_on_the_wire(octets: bytes, *, seven_bit: bool = True) -> None:
    """Claim what every message must hold, whatever it says."""
    assert octets.endswith(b"\r\n")
    for line in octets.split(b"\r\n"):
        assert len(line) <= 998
        assert not re.search(rb"[\r\n\x00]", line)
        assert not seven_bit or line.isascii()


def _unfolded(value: str) -> str:
    return re.sub(r"\r?\n", "", value)


def _unencoded(value: str) -> str:
    return str(make_header(decode_header(value)))


def _canonical(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


def _decoded(part: EmailMessage) -> str:
    payload = cast("bytes", part.get_payload(decode=True))
    return _canonical(payload.decode("utf-8"))


@given(subject=SUBJECTS)
def test_any_subject_comes_back(subject: str) -> None:
    """Both parsers read the subject that was written, and no header more."""
    octets = _written(subject=subject)
    assert_on_the_wire(octets)
    legacy = message_from_bytes(octets)
    assert _unencoded(_unfolded(legacy["Subject"])) == subject
    message = _parsed(octets)
    assert message.keys()[: len(HEADER_NAMES)] == HEADER_NAMES
    assert message.keys()[len(HEADER_NAMES) :] == ["Content-Type", "Content-Transfer-Encoding"]


@settings(max_examples=50)  # the parsers take milliseconds for an address
@given(
    sender=MAILBOXES, to=st.lists(MAILBOXES, min_size=1, max_size=5), reply_to=st.lists(MAILBOXES, max_size=2)
)
def test_any_mailbox_comes_back(sender: Mailbox, to: list[Mailbox], reply_to: list[Mailbox]) -> None:
    """Names and addresses come back in their order; there is no further address."""
    octets = _written(sender=sender, to=tuple(to), cc=tuple(to), reply_to=tuple(reply_to))
    assert_on_the_wire(octets)
    message, legacy = _parsed(octets), message_from_bytes(octets)
    for name, mailboxes in (("From", [sender]), ("To", to), ("Cc", to), ("Reply-To", reply_to)):
        if not mailboxes:
            assert legacy[name] is None
            continue
        # Names by the older parser: `policy.default` keeps the blank between encoded words that RFC 2047 6.2 drops.
        names = [_unencoded(found) for found, _ in getaddresses([_unfolded(legacy[name])])]
        assert names == [mailbox.display for mailbox in mailboxes]
        assert [found.addr_spec for found in message[name].addresses] == [
            mailbox.address for mailbox in mailboxes
        ]


@given(text=st.none() | BODIES, html=st.none() | BODIES)
def test_any_body_comes_back(text: str | None, html: str | None) -> None:
    """Text and html come back but for the form of their line ends and the last one."""
    if text is None and html is None:
        return
    octets = _written(text=text, html=html)
    assert_on_the_wire(octets)
    assert all(len(line) <= 78 for line in octets.split(b"\r\n"))
    leaves = [part for part in _parsed(octets).walk() if not part.is_multipart()]
    assert [part.get_content_subtype() for part in leaves] == ["plain", "html"][: 1 if html is None else 2]
    if text is not None:
        assert _decoded(leaves[0]) == _canonical(text)
    if html is not None:
        assert _decoded(leaves[-1]) == _canonical(html)


@given(attachments=st.lists(ATTACHMENTS, max_size=4), html=st.none() | st.just("<p>hello</p>"))
def test_any_attachment_comes_back(attachments: list[Attachment], html: str | None) -> None:
    """Names, types and contents of attachments come back, inline ones beside the html that shows them."""
    octets = _written(attachments=tuple(attachments), html=html)
    assert_on_the_wire(octets)
    message = _parsed(octets)
    files = [part for part in message.walk() if part.get_content_disposition()]
    inline = [file for file in attachments if file.content_id and html]
    expected = [*inline, *(file for file in attachments if file not in inline)]
    assert [part.get_payload(decode=True) for part in files] == [file.content for file in expected]
    assert [part.get_filename() for part in files] == [
        file.filename.strip()
        for file in expected  # the parser strips
    ]
    assert [part["Content-ID"] for part in files] == [
        f"<{file.content_id}>" if file.content_id else None for file in expected
    ]
    assert not [defect for part in message.walk() for defect in part.defects]


@given(name=st.sampled_from(["X-Reference", "List-Unsubscribe"]), value=SUBJECTS)
def test_any_further_header_comes_back(name: str, value: str) -> None:
    """A further header holds its value and adds no other."""
    octets = _written(headers=((name, value),))
    assert_on_the_wire(octets)
    legacy = message_from_bytes(octets)
    assert _unencoded(_unfolded(legacy[name])) == value
    assert len(legacy.keys()) == 9


@given(url=st.from_regex(UNSUBSCRIBE_URL, fullmatch=True).filter(lambda url: len(url) <= MAX_URL_CHARS))
def test_any_unsubscribe_url_stands_as_it_is(url: str) -> None:
    """What intake takes as a URL is neither folded nor encoded, and no reader decodes it into another."""
    octets = _written(headers=(("List-Unsubscribe", f"<{url}>"),))
    assert_on_the_wire(octets)
    assert f"\r\nList-Unsubscribe: <{url}>\r\n".encode() in octets
    assert _unencoded(message_from_bytes(octets)["List-Unsubscribe"]) == f"<{url}>"


@given(date=DATES, subject=SUBJECTS, text=BODIES, attachments=st.lists(ATTACHMENTS, max_size=2))
def test_equal_parts_give_equal_bytes(
    date: datetime, subject: str, text: str, attachments: list[Attachment]
) -> None:
    """I9: a second call writes the same bytes; the date is the one given."""
    first = _written(date=date, subject=subject, text=text, attachments=tuple(attachments))
    assert first == _written(date=date, subject=subject, text=text, attachments=tuple(attachments))
    assert parsedate_to_datetime(message_from_bytes(first)["Date"]) == date


@given(local=UTF8_LOCALS, display=DISPLAYS)
def test_utf8_addresses_stand_in_the_header(local: str, display: str) -> None:
    """Only an address beyond ASCII makes the header UTF-8, and then SMTPUTF8 is asked for."""
    mailbox = Mailbox(local, "example.org", display)
    octets = _written(to=(mailbox,))
    assert_on_the_wire(octets, seven_bit=local.isascii())
    head, _, body = octets.partition(b"\r\n\r\n")
    assert body.isascii()
    assert mailbox.address in head.decode()
    parts = MessageParts("a@b.c", datetime(2026, 1, 1, tzinfo=UTC), Mailbox("a", "b.c"), (mailbox,), "", "x")
    assert needs_smtputf8(parts) is not local.isascii()
