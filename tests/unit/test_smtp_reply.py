"""SMTP replies: what is taken, what is a fault, and what may be stored of them."""

import pytest

from mailkeep.core.outcome import MAX_REPLY_CHARS
from mailkeep.core.redact import mask_addresses
from mailkeep.smtp.reply import (
    MAX_LINE_BYTES,
    MAX_REPLY_BYTES,
    MAX_REPLY_LINES,
    MAX_SAMPLE_CHARS,
    ProtocolFault,
    ReplyParser,
    without,
)


def parse_one(data):
    """Parse exactly one reply."""
    (reply,) = ReplyParser().feed(data)
    return reply


@pytest.mark.parametrize(
    ("data", "code", "enhanced", "text"),
    [
        (b"250 Ok\r\n", 250, None, "Ok"),
        (b"250\r\n", 250, None, ""),
        (b"250 \r\n", 250, None, ""),
        (b"250 2.1.0 Ok\r\n", 250, "2.1.0", "Ok"),
        (b"250 2.1.0\r\n", 250, "2.1.0", ""),
        (b"550 5.1.1\r\n", 550, "5.1.1", ""),
        (b"421 4.3.2 Service temporarily unavailable\r\n", 421, "4.3.2", "Service temporarily unavailable"),
        (b"250-one\r\n250-two\r\n250 three\r\n", 250, None, "one two three"),
        (b"550-5.7.26 one\r\n550-5.7.26 two\r\n550 5.7.26 three\r\n", 550, "5.7.26", "one two three"),
        (b"250-\r\n250 x\r\n", 250, None, "x"),
        (b"250 5.1.1 contradicts itself\r\n", 250, None, "5.1.1 contradicts itself"),
        (b"220 2.2.2.2 is an address\r\n", 220, None, "2.2.2.2 is an address"),
        (b"354 3.0.0 no such class\r\n", 354, None, "3.0.0 no such class"),
        (b"100 1xx\r\n", 100, None, "1xx"),
        (b"599 last\r\n", 599, None, "last"),
    ],
)
def test_well_formed_replies_are_read(data, code, enhanced, text):
    """Code, enhanced code and text come apart; an enhanced code that contradicts the code is only text."""
    reply = parse_one(data)
    assert (reply.code, reply.enhanced, reply.text) == (code, enhanced, text)
    assert reply.digit == code // 100


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"250 bare\n", ProtocolFault.BARE_LF),
        (b"\n", ProtocolFault.BARE_LF),
        (b"\r\n", ProtocolFault.NOT_A_REPLY),
        (b"25 short\r\n", ProtocolFault.NOT_A_REPLY),
        (b"2500 long\r\n", ProtocolFault.NOT_A_REPLY),
        (b"250_x\r\n", ProtocolFault.NOT_A_REPLY),
        (b"\xb2\xb5\xb0 x\r\n", ProtocolFault.NOT_A_REPLY),
        ("٢٥٠ x\r\n".encode(), ProtocolFault.NOT_A_REPLY),
        (b"+OK ready\r\n", ProtocolFault.NOT_A_REPLY),
        (b"HTTP/1.1 400 Bad Request\r\n", ProtocolFault.NOT_A_REPLY),
        (b"250 nul\0\r\n", ProtocolFault.NUL),
        (b"099 low\r\n", ProtocolFault.CODE_OUT_OF_RANGE),
        (b"600 high\r\n", ProtocolFault.CODE_OUT_OF_RANGE),
        (b"666 evil\r\n", ProtocolFault.CODE_OUT_OF_RANGE),
        (b"250-a\r\n251 b\r\n", ProtocolFault.MIXED_CODES),
        (b"250-a\r\n550-b\r\n", ProtocolFault.MIXED_CODES),
        (b"250 " + b"x" * MAX_LINE_BYTES + b"\r\n", ProtocolFault.LINE_TOO_LONG),
        (b"x" * MAX_LINE_BYTES, ProtocolFault.LINE_TOO_LONG),
        (b"250-a\r\n" * (MAX_REPLY_LINES + 1), ProtocolFault.REPLY_TOO_LONG),
        ((b"250-" + b"x" * 1000 + b"\r\n") * (MAX_REPLY_BYTES // 1000 + 1), ProtocolFault.REPLY_TOO_LONG),
    ],
)
def test_malformed_replies_are_faults(data, fault):
    """Each violation has a name, gives no reply, and ends the stream: nothing after it is believed."""
    parser = ReplyParser()
    assert parser.feed(data) == []
    assert parser.fault is fault
    assert parser.pending
    assert parser.feed(b"250 Ok\r\n") == []


def test_the_bounds_themselves_are_allowed():
    """A line, and a reply, of exactly the maximum pass."""
    line = b"250 " + b"x" * (MAX_LINE_BYTES - 6) + b"\r\n"
    assert len(line) == MAX_LINE_BYTES
    assert parse_one(line).code == 250
    assert len(parse_one(b"250-a\r\n" * (MAX_REPLY_LINES - 1) + b"250 a\r\n").lines) == MAX_REPLY_LINES


def test_replies_before_a_fault_are_kept():
    """What was well-formed came first and counts."""
    parser = ReplyParser()
    assert [reply.code for reply in parser.feed(b"250 one\r\n354 two\r\nthree\r\n")] == [250, 354]
    assert parser.fault is ProtocolFault.NOT_A_REPLY


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        (b"2", b"50 ok\r\n"),
        (b"250 half", b"\r\n"),
        (b"250 half\r", b"\n"),
        (b"250-first\r\n", b"250 last\r\n"),
    ],
)
def test_unfinished_bytes_are_pending(first, rest):
    """A partial line or reply is unread input; once it is whole nothing is pending."""
    parser = ReplyParser()
    assert not parser.pending
    assert parser.feed(first) == []
    assert parser.pending
    assert len(parser.feed(rest)) == 1
    assert not parser.pending


def test_text_is_escaped_masked_and_cut():
    """Control characters, invalid UTF-8, direction marks and addresses never reach what is stored."""
    data = b"550 5.1.1 \x1b[31m<ann@example.org>\t\xff\xfe \xe2\x80\xae bad\r " + b"x" * 1500 + b"\r\n"
    reply = parse_one(data)
    assert reply.text.startswith(r"\x1b[31m<…@…>\t\xff\xfe \u202e bad\r x")
    assert len(reply.text) == MAX_REPLY_CHARS
    assert reply.text.endswith("…")
    assert reply.shown.startswith(r"550 5.1.1 \x1b[31m<…@…>")
    assert reply.text.isprintable()


@pytest.mark.parametrize(
    ("data", "sample"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "HTTP/1.1 400 Bad Request"),
        (b"250-a\r\n550 b\r\n", "550 b"),
        (b"\x1b[2J <ann@example.org>\n", r"\x1b[2J <…@…>"),
        (
            b"y" * (MAX_SAMPLE_CHARS - 4) + b" secret.person@example.org\n",
            "y" * (MAX_SAMPLE_CHARS - 4) + " …@…",
        ),
        (b"x" * MAX_LINE_BYTES, "x" * (MAX_SAMPLE_CHARS - 1) + "…"),
    ],
)
def test_the_line_that_broke_the_protocol_is_shown(data, sample):
    """What speaks there can be seen, and nothing of it that must not be kept."""
    parser = ReplyParser()
    parser.feed(data)
    assert parser.fault
    assert parser.sample == sample


def test_secrets_are_taken_out_of_what_is_kept():
    """Also where the text is cut; what parses the reply sees it whole."""
    reply = parse_one(b"500 " + b"x" * (MAX_REPLY_CHARS - 8) + b" hunter2 hunter2\r\n")
    kept = without(reply, ["hunter2"])
    assert "hunt" in reply.text
    assert "hunt" not in kept.text + kept.shown
    assert kept.lines == reply.lines
    assert without(reply, ["other"]) is reply


def test_an_address_at_the_cut_is_masked_first():
    """Cutting first would leave half an address that no longer looks like one."""
    reply = parse_one(b"550 " + b"x" * (MAX_REPLY_CHARS - 4) + b" secret.person@example.org\r\n")
    assert "secret" not in reply.text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Ok: queued as 4Z8", "Ok: queued as 4Z8"),
        ("<ann@example.org>: unknown", "<…@…>: unknown"),
        ("unknown user ann@example.org.", "unknown user …@…"),
        ("to=<ann+tag@[192.0.2.1]>, x", "to=<…@…>, x"),
        ('"ann b"@example.org gone', "…@… gone"),
        ("see https://x.test/?e=ann%40example.org now", "see …@… now"),
        ("grün＠例え.test", "…@…"),
        ("a@b c@d", "…@… …@…"),
        ("at @ alone", "at …@… alone"),
        ('no "quotes" here', 'no "quotes" here'),
    ],
)
def test_addresses_are_masked(text, masked):
    """Anything that looks like an address is gone, the words around it stay."""
    assert mask_addresses(text) == masked


def test_masking_is_linear():
    """A server can't make masking slow: a long text of near-addresses takes as long as any other."""
    text = ('"' + "a" * 63) * 1000 + "@"
    assert "a@" not in mask_addresses(text)
