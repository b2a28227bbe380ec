"""Transcripts: what was said on each connection, in memory and bounded, for those who look for the fault.

Logins are masked and messages are a size: the inbox has those. Addresses stand in clear; whoever may read the inbox may
read this. The newest connections are kept, the oldest go first and are counted. The session writes; the HTTP API reads.
"""

from collections import deque
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

MAX_CONNECTIONS: Final = 1000  # a long test day of one person
MAX_LINES: Final = 2000  # of one connection: some 300 messages on it
MAX_LINE_CHARS: Final = 1000  # of what was said; EHLO and paths are shorter
MAX_CHARS: Final = 16 * 1024 * 1024  # of all connections


class Speaker(StrEnum):
    """Who said a line."""

    CLIENT = "client"
    SERVER = "server"
    NOTE = "note"  # what happened without words


class Line(msgspec.Struct, frozen=True):
    """One line, `at_s` after the connection began."""

    at_s: float
    by: Speaker
    text: str


class Connection(msgspec.Struct):
    """One connection, with what was said on it. `left_out` lines came after the bound and are not in `lines`."""

    id: str
    client: str
    began_at: datetime
    ended_at: datetime | None = None
    mode: str = ""  # at its beginning
    lines: list[Line] = msgspec.field(default_factory=list)
    left_out: int = 0


class Transcripts:
    """The newest connections of one sinkhole; `dropped_count` made room for newer ones."""

    def __init__(self, *, max_connections: int = MAX_CONNECTIONS, max_chars: int = MAX_CHARS) -> None:
        self._max_connections, self._max_chars = max_connections, max_chars
        self._connections: deque[Connection] = deque()
        self._chars: dict[str, int] = {}
        self.size_chars = 0
        self.total_count = 0
        self.dropped_count = 0

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The connections in memory, oldest first."""
        return tuple(self._connections)

    def find(self, connection_id: str) -> Connection | None:
        """Return one connection, None if it isn't kept (any more)."""
        return next((each for each in self._connections if each.id == connection_id), None)

    def begin(self, client: str, mode: str, at: datetime) -> Connection:
        """Return a new connection from `client`."""
        self.total_count += 1
        connection = Connection(f"c{self.total_count}", client, at, mode=mode)
        self._connections.append(connection)
        self._chars[connection.id] = 0
        self._make_room()
        return connection

    def note(self, connection: Connection, line: Line) -> None:
        """Add `line` to `connection`, cut to its bound; one that is no longer kept takes no more."""
        if connection.id not in self._chars:
            return
        if len(connection.lines) >= MAX_LINES:
            connection.left_out += 1
            return
        text = line.text[:MAX_LINE_CHARS]
        connection.lines.append(Line(line.at_s, line.by, text))
        self._chars[connection.id] += len(text)
        self.size_chars += len(text)
        self._make_room()

    def _make_room(self) -> None:
        while len(self._connections) > self._max_connections or self.size_chars > self._max_chars:
            self.size_chars -= self._chars.pop(self._connections.popleft().id)
            self.dropped_count += 1
