"""Properties of the SMTP client's pure part: whatever a server sends, and whatever an address holds."""

from hypothesis import example, given
from hypothesis import strategies as st

from mailkeep.core.decide import decide
from mailkeep.core.delivery import DeliveryStatus, Guarantee
from mailkeep.core.outcome import MAX_REPLY_CHARS, MAX_WAIT_HINT_S, Phase, Severity
from mailkeep.core.redact import mask_addresses
from mailkeep.smtp.capabilities import Capabilities
from mailkeep.smtp.classify import REPLY_PHASES, classify
from mailkeep.smtp.dialog import DATA, LONE_DOT, transaction
from mailkeep.smtp.ending import Heard, conclude, ended_by_reply
from mailkeep.smtp.envelope import (
    Envelope,
    UnsafeEnvelopeError,
    check_safe,
    dot_stuffed,
    dot_stuffed_blocks,
)
from mailkeep.smtp.reply import MAX_LINE_BYTES, MAX_REPLY_LINES, ReplyParser

LINE = st.one_of(
    st.from_regex(rb"\A[1-5][0-9]{2}[ -][ -~]{0,40}\r\n\Z"),
    st.sampled_from(
        [b"250-a\r\n", b"250 a\r\n", b"354\r\n", b"550 5.1.1 <a@b.test> gone\r\n", b"25 short\r\n", b"\n"]
    ),
    st.binary(max_size=30),
    st.just(b"250-" + b"x" * (MAX_LINE_BYTES - 5) + b"\r\n"),
)
STREAM = st.lists(LINE, max_size=30).map(b"".join)


def feed(data, cuts=()):
    """Feed `data` in the pieces that `cuts` make of it; return what was parsed."""
    parser, replies, start = ReplyParser(), [], 0
    for end in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        replies += parser.feed(data[start:end])
        start = end
    return replies, parser


@given(data=STREAM, cuts=st.lists(st.integers(min_value=0), max_size=60))
@example(data=b"250-a\r\n250 b\r\n", cuts=[6])
@example(data=b"x" * MAX_LINE_BYTES + b"\r\n", cuts=[1, MAX_LINE_BYTES])
def test_however_the_stream_is_cut_the_replies_are_the_same(data, cuts):
    """Replies and fault depend on the bytes alone, not on the pieces they came in."""
    whole, parser = feed(data)
    pieces, pieced = feed(data, cuts)
    assert (pieces, pieced.fault) == (whole, parser.fault)


@given(st.lists(st.binary(max_size=5000), max_size=30))
def test_garbage_never_exceeds_the_bounds(pieces):
    """Whatever comes, the parser ends, holds a bounded tail, and its replies are bounded and printable."""
    parser = ReplyParser()
    for piece in pieces:
        for reply in parser.feed(piece):
            assert 100 <= reply.code <= 599
            assert len(reply.lines) <= MAX_REPLY_LINES
            assert len(reply.text) <= MAX_REPLY_CHARS
            assert reply.text.isprintable()
        assert len(parser._tail) < MAX_LINE_BYTES
        assert len(parser._lines) <= MAX_REPLY_LINES


@given(st.integers(100, 599), st.lists(st.from_regex(r"\A[ -~]{0,60}\Z"), min_size=1, max_size=20))
def test_what_is_well_formed_is_read_back(code, texts):
    """Any code and any printable lines survive, but for the enhanced code and addresses, which are taken out."""
    lines = [f"{code}-{text}\r\n" for text in texts[:-1]] + [f"{code} {texts[-1]}\r\n"]
    (reply,), parser = feed("".join(lines).encode())
    assert (reply.code, parser.fault, parser.pending) == (code, None, False)
    if reply.enhanced is None:
        assert reply.lines == tuple(texts)


@given(st.text(max_size=200), st.from_regex(r"\A[a-z0-9.+-]{1,20}@[a-z0-9.-]{1,20}\Z"), st.text(max_size=200))
def test_an_address_is_masked_wherever_it_stands(before, address, after):
    """No text around an address makes it survive."""
    assert address not in mask_addresses(before + address + after)


CODES = st.sampled_from([150, 220, 250, 251, 252, 354, 421, 450, 451, 452, 503, 530, 550, 552, 554])


@given(st.lists(CODES, min_size=6, max_size=12), st.integers(1, 4), st.booleans())
def test_the_body_is_awaited_only_for_an_accepted_recipient(codes, recipients, pipelining):
    """However a server answers: body only after MAIL 2yz, a RCPT 2yz and DATA 3yz; a lone dot only if no RCPT was 2yz."""
    envelope = Envelope("", tuple((ordinal, "a@y.test") for ordinal in range(recipients)), b"a: b\r\n")
    talk = transaction(envelope, Capabilities(pipelining=pipelining))
    said, heard = [], []
    try:
        group = next(talk)
        while True:
            answers = []
            for ask in group:
                answers.append(codes[len(heard) % len(codes)])
                heard.append(answers[-1])
                said.append(ask)
                if answers[-1] == 421:
                    break
            group = talk.send(feed("".join(f"{code} x\r\n" for code in answers).encode())[0])
    except StopIteration as done:
        end = done.value
    accepted = [
        code for ask, code in zip(said, heard, strict=True) if ask.phase == "rcpt" and code // 100 == 2
    ]
    if end is None:
        assert said[-1] is DATA
        assert (heard[0] // 100, heard[-1] // 100) == (2, 3)
        assert accepted
        assert all(code // 100 in (2, 4, 5) and code != 421 for code in heard[1:-1])
    else:
        assert end.verdict.severity is not Severity.SUCCESS
    assert LONE_DOT not in said or not accepted


@given(st.text(max_size=80), st.text(max_size=80))
@example("a@b.test> SIZE=1", "a@b.test")
@example("a@b.test", "a@b.test\r\nDATA")
@example('"\r\n"@b.test', "a@b.test")
def test_no_address_breaks_out_of_its_command(sender, recipient):
    """Either the envelope is refused, or each command is one line with one pair of brackets outside of quotes."""
    envelope = Envelope(sender, ((0, recipient),), b"a: b\r\n")
    try:
        check_safe(envelope)
    except UnsafeEnvelopeError:
        return
    talk = transaction(envelope, Capabilities(smtputf8=True, eightbitmime=True, pipelining=True))
    lines = b"".join(ask.line for ask in next(talk)).decode().split("\r\n")
    assert len(lines) == 4
    assert lines[0].startswith(f"MAIL FROM:<{sender}>")
    assert lines[1] == f"RCPT TO:<{recipient}>"
    assert not any(char in "".join(lines) for char in "\r\n\0")


@given(st.lists(st.sampled_from([b".", b"a", b"\r\n", b"..", b"\r\n.\r\n", b" "]), max_size=30).map(b"".join))
def test_stuffing_is_undone_by_the_server(message):
    """Unstuffed as RFC 5321 section 4.5.2 says, the message is what it was; the end comes once, at the end."""
    wire = dot_stuffed(message) + b".\r\n"
    assert (b"\r\n" + wire).find(b"\r\n.\r\n") == len(wire) - 3
    unstuffed = b"\r\n".join(line.removeprefix(b".") for line in wire[:-3].split(b"\r\n"))
    assert unstuffed in (message, message + b"\r\n")


@given(
    st.lists(st.sampled_from([b".", b"a", b"\r", b"\n", b"\r\n.", b" "]), max_size=30).map(b"".join),
    st.integers(2, 9),
)
def test_blocks_are_stuffed_as_the_whole(message, block_bytes):
    """Wherever a message is cut into blocks, what leaves is what stuffing all of it at once makes."""
    blocks = list(dot_stuffed_blocks(message, block_bytes))
    assert b"".join(blocks) == dot_stuffed(message)
    assert max(map(len, blocks)) <= 2 * block_bytes + 2


@given(st.integers(1, 12), st.integers(1, 5), st.booleans())
def test_a_server_that_takes_few_at_once_gets_the_rest_in_new_transactions(recipients, limit, pipelining):
    """As many transactions as its limit makes necessary, one right after the other, each recipient once, no rung used."""
    states, transactions = "o" * recipients, 0
    while "o" in states:
        still_open = [ordinal for ordinal, state in enumerate(states) if state == "o"]
        envelope = Envelope("", tuple((ordinal, "a@y.test") for ordinal in still_open), b"a: b\r\n")
        end, heard = converse_with_limit(envelope, limit, pipelining)
        outcome = conclude(envelope, end, heard, began_s=0.0, ended_s=1.0)
        decision = decide(
            states=states,
            outcome=outcome,
            guarantee=Guarantee.AT_MOST_ONCE,
            ladder_s=(60.0,),
            rungs_used=0,
            park_s=1.0,
            chance=0.5,
        )
        transactions += 1
        assert decision.recipient_states.count("s") == min(transactions * limit, recipients)
        states = decision.recipient_states
        assert (decision.wait_s, decision.uses_rung) == (0.0 if "o" in states else None, False)
    assert decision.status is DeliveryStatus.SENT
    assert transactions == -(-recipients // limit)


def converse_with_limit(envelope, limit, pipelining):
    """Speak one transaction with a server that answers 452 4.5.3 from recipient `limit` on."""
    heard = []
    talk = transaction(envelope, Capabilities(pipelining=pipelining))
    try:
        group = next(talk)
        while True:
            replies = []
            for ask in group:
                taken = sum(entry.phase is Phase.RCPT for entry in heard) < limit
                text = {Phase.MAIL: "250 ok", Phase.DATA: "354 go"}.get(
                    ask.phase, "250 ok" if taken else "452 4.5.3 Too many recipients"
                )
                (reply,), _ = feed(f"{text}\r\n".encode())
                heard.append(Heard(ask.phase, ask.shown, reply, 0.5))
                replies.append(reply)
            group = talk.send(replies)
    except StopIteration as done:
        assert done.value is None
    (reply,), _ = feed(b"250 2.0.0 taken\r\n")
    return ended_by_reply(Phase.DOT, reply), heard


@given(st.text("0123456789 :-.smhdayS\u017f\u0663x", max_size=60))
@example("5 \u017f")
@example("99:59:59")
@example("999999 days")
def test_no_words_of_a_server_ask_for_more_than_a_day(text):
    """Whatever stands in a reply, the wait it asks for is from nothing to the bound, and something only where it is open."""
    for line in (f"450 try again in {text}", f"452 4.2.2 {text}", f"550 retry after {text}"):
        (reply,), _ = feed(f"{line}\r\n".encode())
        for phase in REPLY_PHASES:
            verdict = classify(phase, reply)
            assert 0 <= verdict.wait_hint_s <= MAX_WAIT_HINT_S
            assert not verdict.wait_hint_s or verdict.severity is Severity.TRANSIENT
