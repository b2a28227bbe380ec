"""The sinkhole's memory of what arrived."""

from datetime import UTC, datetime

import msgspec

from mailkeep.sinkhole.capture import Capture, Captured

MESSAGE = Captured(
    received_at=datetime(2026, 1, 2, tzinfo=UTC),
    client="127.0.0.1",
    sender="ann@example.test",
    recipients=("bob@sinkhole.test",),
    message_id="<1@a.test>",
    body=b"x" * 10,
    is_answered=True,
)


def bodies(capture: Capture) -> list[bytes]:
    """Return what is in memory, oldest first."""
    return [message.body for message in capture.messages]


def captured(capture: Capture, *contents: bytes) -> Capture:
    """Return `capture` after it took the contents in order."""
    for content in contents:
        capture.add(msgspec.structs.replace(MESSAGE, body=content))
    return capture


def test_the_oldest_make_room_by_count() -> None:
    """Beyond the count the oldest message goes and is counted; counts by recipient stay complete."""
    capture = captured(Capture(max_messages=2), b"1", b"2", b"3")
    assert bodies(capture) == [b"2", b"3"]
    assert (capture.total_count, capture.dropped_count) == (3, 1)
    assert capture.counts_by_recipient == {"bob@sinkhole.test": 3}


def test_the_oldest_make_room_by_bytes() -> None:
    """Beyond the bytes as many of the oldest go as it takes."""
    capture = captured(Capture(max_bytes=10), b"1" * 4, b"2" * 4, b"3" * 8)
    assert bodies(capture) == [b"3" * 8]
    assert (capture.size_bytes, capture.dropped_count) == (8, 2)


def test_a_message_larger_than_the_bound_is_counted_and_not_kept() -> None:
    """The bound on bytes holds for a single message, too."""
    capture = captured(Capture(max_bytes=10), b"1" * 11)
    assert bodies(capture) == []
    assert (capture.total_count, capture.dropped_count, capture.size_bytes) == (1, 1, 0)
