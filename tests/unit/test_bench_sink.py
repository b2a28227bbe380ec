"""The benchmark's next hop: it counts what came, however the bytes were cut."""

import pytest
from bench.sink import Behaviour, Door, Ledger, SinkProtocol

ENVELOPE = b"MAIL FROM:<a@bench.example.org>\r\nRCPT TO:<tok-%06d@bench.example.org>\r\nDATA\r\n"
CONTENT = b"Subject: x\r\n\r\n..dot\r\n.\r.\nno end\r\n"
DIALOG = b"EHLO load\r\n" + b"".join((ENVELOPE % token) + CONTENT + b".\r\n" for token in (7, 8, 7))


class Wire:
    """A transport that keeps what is written."""

    def __init__(self):
        self.written = b""
        self.is_aborted = False

    def write(self, octets):
        """Keep it."""
        self.written += octets

    def abort(self):
        """Note it."""
        self.is_aborted = True


def said(pieces, **behaviour):
    """Return what a sink answers to `pieces`, and its ledger."""
    ledger, wire = Ledger(), Wire()
    sink = SinkProtocol(ledger, Behaviour(**behaviour), None, Door(shut=False))
    sink.connection_made(wire)
    for piece in pieces:
        sink.data_received(piece)
    return wire, ledger.take()


@pytest.mark.parametrize("size", [*range(1, 12), 40, len(DIALOG)])
def test_messages_are_counted_however_they_are_cut(size):
    """In pieces of any size: three messages, one of them twice, each of the content's size, and the same replies."""
    wire, arrivals = said(DIALOG[at : at + size] for at in range(0, len(DIALOG), size))
    assert set(arrivals.at_ns) == {7, 8}
    assert arrivals.duplicates == 1
    assert arrivals.content_bytes == 3 * len(CONTENT)
    assert wire.written == said([DIALOG])[0].written
    assert wire.written.count(b"354 ") == 3
    assert wire.written.count(b"250 2.0.0 Ok") == 3


def test_a_stalled_one_takes_a_message_and_never_answers():
    """The dot gets no reply, though the message is counted."""
    wire, arrivals = said([DIALOG], stalled=True)
    assert set(arrivals.at_ns) == {7, 8}
    assert b"250 2.0.0 Ok" not in wire.written


def test_who_does_not_speak_smtp_is_cut_off():
    """A line without an end is not gathered for ever."""
    assert said([b"x" * 5000])[0].is_aborted


def test_nobody_is_greeted_before_the_door_opens():
    """Who came before hears nothing until then, who comes afterwards is greeted at once."""
    door, wires = Door(shut=True), (Wire(), Wire())
    for wire in wires:
        SinkProtocol(Ledger(), Behaviour(shut=True), None, door).connection_made(wire)
        greeted = bool(wires[0].written)
        door.open()
        assert greeted is (wire is wires[1])
    assert [wire.written.count(b"220 ") for wire in wires] == [1, 1]
