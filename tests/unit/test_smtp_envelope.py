"""The last wall before the wire: what an envelope may hold, and how its message is stuffed."""

import pytest

from mailkeep.aside import PIECE_BYTES
from mailkeep.smtp.envelope import Envelope, UnsafeEnvelopeError, check_safe, dot_stuffed

GOOD = [
    "a@example.test",
    "a.b+c-d_e=f@sub.example.test",
    "!#$%&'*+/=?^_`{|}~-@x.test",
    "a@[192.0.2.1]",
    "a@[IPv6:2001:db8::1]",
    "grün@example.test",
    '"with space"@example.test',
    r'"a\"b>c"@example.test',
]
BAD = [
    "no at sign",
    "a@b c",
    "a b@example.test",
    "a@example.test ",
    "a>@example.test",
    "<a@example.test>",
    "a@example.test> SIZE=1",
    "a@example.test\r\nDATA",
    "a\r@example.test",
    "a@example.test\n",
    "a@example\0.test",
    "a\0@example.test",
    "a\x85b@example.test",
    "a\u2028b@example.test",
    "a\ud800@example.test",
    '"a\r\nb"@example.test',
    '"a"b"@example.test',
    '"unclosed@example.test',
    "a@b@example.test",
    "@example.test",
    "a@",
    "a@exämple.test",
    "@relay.test:a@example.test",
]


def envelope(sender="from@client.test", recipients=("to@example.test",), message=b"a: b\r\n"):
    """An envelope that is safe but for what is given."""
    return Envelope(sender, tuple(enumerate(recipients)), message)


@pytest.mark.parametrize("address", GOOD)
def test_addresses_that_fit_a_command_pass(address):
    """Dot-atoms, quoted local parts, literals and UTF-8 local parts are what RFC 5321 and 6531 allow."""
    check_safe(envelope(address, (address,)))


@pytest.mark.parametrize("address", BAD)
def test_addresses_that_would_break_a_command_do_not(address):
    """Line ends, NUL, stray spaces and brackets are refused for sender and recipient alike, unrepeated."""
    for fault in (envelope(sender=address), envelope(recipients=("a@example.test", address))):
        with pytest.raises(UnsafeEnvelopeError) as caught:
            check_safe(fault)
        assert address not in str(caught.value)


def test_only_the_sender_may_be_empty():
    """`<>` is the sender of a bounce; an empty recipient is none, and an envelope without recipients can't be made."""
    check_safe(envelope(sender=""))
    with pytest.raises(UnsafeEnvelopeError):
        check_safe(envelope(recipients=("",)))
    with pytest.raises(ValueError, match="needs a recipient"):
        envelope(recipients=())


@pytest.mark.parametrize(
    "message",
    [
        b"a\nb\r\n",
        b"a\rb\r\n",
        b"\n.\r\n",
        b"\r.\r\n",
        b"a\r\r\n.\r\n",
        b"a\r\n\n.\r\n",
        b"a\0b\r\n",
        b"a\r",
        b"a\n",
        b"\n\r",
    ],
)
def test_a_message_with_a_bare_line_end_is_refused(message):
    """Each spelling of "SMTP smuggling" is stopped, wherever it stands."""
    with pytest.raises(UnsafeEnvelopeError):
        check_safe(envelope(message=message))


@pytest.mark.parametrize("before", range(PIECE_BYTES - 3, PIECE_BYTES + 2))
def test_line_ends_are_seen_where_pieces_of_a_large_message_meet(before):
    """A whole line end is none the worse for standing on the border; a bare one is found there as elsewhere."""
    check_safe(envelope(message=b"a" * before + b"\r\n" + b"a" * PIECE_BYTES + b"\r\n"))
    for fault in (b"\r", b"\n", b"\n\r", b"\r\r\n", b"\r\n\n", b"\0"):
        with pytest.raises(UnsafeEnvelopeError):
            check_safe(envelope(message=b"a" * before + fault + b"a" * PIECE_BYTES + b"\r\n"))


@pytest.mark.parametrize(
    ("message", "stuffed"),
    [
        (b"a\r\n", b"a\r\n"),
        (b".\r\n", b"..\r\n"),
        (b"a\r\n.\r\n", b"a\r\n..\r\n"),
        (b"a\r\n..b\r\n.c", b"a\r\n...b\r\n..c\r\n"),
        (b"a", b"a\r\n"),
        (b"", b"\r\n"),
        (b"a.b\r\n", b"a.b\r\n"),
    ],
)
def test_leading_dots_are_doubled(message, stuffed):
    """RFC 5321 section 4.5.2; the result always ends in CR LF, so that the final dot stands on a line of its own."""
    assert dot_stuffed(message) == stuffed


def test_needs_are_seen_whether_or_not_they_are_said():
    """Non-ASCII addresses need SMTPUTF8 and 8-bit bytes 8BITMIME, also where the caller forgot to say so."""
    plain = envelope()
    assert (plain.needs_smtputf8, plain.needs_8bitmime) == (False, False)
    assert envelope(sender="ö@client.test").needs_smtputf8
    assert envelope(recipients=("a@example.test", "ö@example.test")).needs_smtputf8
    assert envelope(message="ö".encode()).needs_8bitmime
    told = Envelope("", ((0, "a@example.test"),), b"", smtputf8=True, eightbit=True)
    assert (told.needs_smtputf8, told.needs_8bitmime) == (True, True)
