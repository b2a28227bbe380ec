"""The sinkhole's lines for people and programs."""

from datetime import UTC, datetime

import msgspec
import pytest

from mailkeep.sinkhole.report import Exchange, as_json, mask, readable

EXCHANGE = Exchange(
    at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    client="127.0.0.1",
    mode="defer",
    phase="rcpt",
    sender="ann@example.test",
    recipients=("bob@sinkhole.test",),
    reply="421 4.3.2 Service temporarily unavailable",
)
SHOWN = msgspec.structs.replace(EXCHANGE, mode="accept-log", headers="Subject: hi\r\nX: \x1b[2J\u2028y")


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("ann@example.test", "a***@e***"),
        ("", ""),
        ('"a@b"@c.test', '"***@c***'),
        ("\x1b@c.test", "\\x1b***@c***"),
    ],
)
def test_mask(address: str, masked: str) -> None:
    """Only initials are left of an address, and no control character."""
    assert mask(address) == masked


def test_readable_line() -> None:
    """A person reads time, masked envelope, mode and reply on one line."""
    line = readable(EXCHANGE)
    assert line.endswith("<a***@e***> -> <b***@s***>  defer  rcpt: 421 4.3.2 Service temporarily unavailable")
    assert "\n" not in line


def test_silence_is_said_and_many_recipients_are_counted() -> None:
    """No reply and more recipients than a line holds are both told."""
    line = readable(msgspec.structs.replace(EXCHANGE, reply="", recipients=("bob@sinkhole.test",) * 8))
    assert "and 3 more" in line
    assert "(no reply)" in line


def test_json_masks_too() -> None:
    """The JSON line holds the same and no address."""
    line = as_json(EXCHANGE)
    fields = msgspec.json.decode(line)
    assert fields["event"] == "sinkhole_answer"
    assert fields["reply"] == EXCHANGE.reply
    assert fields["recipients"] == ["b***@s***"]
    assert "ann" not in line
    assert "headers" not in fields


def test_accept_log_shows_envelope_and_headers_but_no_control_characters() -> None:
    """In accept-log a person sees everything, and a hostile header can't steer the terminal."""
    text = readable(SHOWN)
    assert "<ann@example.test> -> <bob@sinkhole.test>" in text
    assert "\n    Subject: hi\n" in text
    assert "\x1b" not in text
    assert msgspec.json.decode(as_json(SHOWN))["headers"] == SHOWN.headers
