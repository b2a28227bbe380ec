"""The capture: what arrived, kept for those who check it.

In memory it holds the newest messages, bounded by count and by bytes; the oldest go first and are counted. With a file it
also appends one JSON line a message, written before the session answers, so that another process can count what arrived
although this one is killed: a message that got its 250 has its line. Lines hold addresses but no content, only its hash;
the file is for its owner's eyes (mode 0600). The session calls `add`; tests and the drill read.
"""

import errno
import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

MAX_MESSAGES: Final = 50_000  # more than a test or a benchmark run asks about
MAX_BYTES: Final = 128 * 1024 * 1024  # of message bytes; a fraction of a small machine's memory
MAX_COUNTED_RECIPIENTS: Final = 500_000  # some 60 MB of addresses
MAX_LINE_BYTES: Final = 1024 * 1024  # a thousand recipients of the longest kind, and room


class Captured(msgspec.Struct, frozen=True):
    """One message that the sinkhole took."""

    received_at: datetime
    client: str
    sender: str
    recipients: tuple[str, ...]
    message_id: str  # empty when it had none
    body: bytes  # the whole message, dots unstuffed
    is_answered: bool  # whether our 250 was handed to the connection
    is_tls: bool = False
    is_authenticated: bool = False
    anomalies: tuple[str, ...] = ()
    id: str = ""  # by which it is asked for, while this sinkhole runs
    connection_id: str = ""  # of the transcript of its connection


class CaptureLine(msgspec.Struct, frozen=True):
    """One line of a capture file: a `Captured` with its size and hash in place of the body.

    `is_answered` tells what the sinkhole was about to do: the line goes first.
    """

    received_at: datetime
    client: str
    sender: str
    recipients: tuple[str, ...]
    message_id: str
    size_bytes: int
    sha256: str
    is_answered: bool
    anomalies: tuple[str, ...] = ()


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(CaptureLine)


class Capture:
    """What one sinkhole took. `dropped_count` messages made room for newer ones; counts by recipient stay complete."""

    def __init__(
        self, file: Path | None = None, *, max_messages: int = MAX_MESSAGES, max_bytes: int = MAX_BYTES
    ) -> None:
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._messages: deque[Captured] = deque()
        self._fd = None if file is None else os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._counts: Counter[str] = Counter()
        self.size_bytes = 0
        self.total_count = 0
        self.dropped_count = 0
        self.anomaly_counts: Counter[str] = Counter()  # of refused messages, too

    @property
    def messages(self) -> tuple[Captured, ...]:
        """The messages in memory, oldest first."""
        return tuple(self._messages)

    @property
    def counts_by_recipient(self) -> dict[str, int]:
        """How many messages each recipient got; the first `MAX_COUNTED_RECIPIENTS` recipients are counted."""
        return dict(self._counts)

    def find(self, message_id: str) -> Captured | None:
        """Return one message by its id, None if it isn't in memory (any more)."""
        return next((message for message in self._messages if message.id == message_id), None)

    def forget(self) -> int:
        """Drop the messages in memory and return how many there were; counts and the file stay."""
        count = len(self._messages)
        self._messages.clear()
        self.size_bytes = 0
        return count

    def add(self, message: Captured) -> None:
        """Keep `message`. Raises OSError if its line can't be written whole; then it isn't kept."""
        if self._fd is not None:
            _append(self._fd, message)
        self.total_count += 1
        for recipient in message.recipients:
            if recipient in self._counts or len(self._counts) < MAX_COUNTED_RECIPIENTS:
                self._counts[recipient] += 1
        self._messages.append(message)
        self.size_bytes += len(message.body)
        while len(self._messages) > self._max_messages or self.size_bytes > self._max_bytes:
            self.size_bytes -= len(self._messages.popleft().body)
            self.dropped_count += 1

    def close(self) -> None:
        """Close the file. What is in memory stays readable."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def read_capture_file(path: Path) -> Iterator[CaptureLine]:
    """Yield the lines of a capture file in the order of arrival; a last line that is being written is left out.

    Raises `msgspec.DecodeError` for a line that is damaged.
    """
    with path.open("rb") as lines:
        while (line := lines.readline(MAX_LINE_BYTES)).endswith(b"\n"):
            yield _DECODER.decode(line)


def _append(fd: int, message: Captured) -> None:
    line = CaptureLine(
        received_at=message.received_at,
        client=message.client,
        sender=message.sender,
        recipients=message.recipients,
        message_id=message.message_id,
        size_bytes=len(message.body),
        sha256=hashlib.sha256(message.body).hexdigest(),
        is_answered=message.is_answered,
        anomalies=message.anomalies,
    )
    octets = _ENCODER.encode(line) + b"\n"
    if os.write(fd, octets) != len(
        octets
    ):  # unbuffered, and one write, so that lines of many sinkholes don't mix
        raise OSError(errno.ENOSPC, "the capture file took only part of a line")
