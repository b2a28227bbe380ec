"""What a peer's PostgreSQL does meanwhile: bytes of WAL, and what its sessions wait for.

Two looks at the position of the log cost nothing; sessions are looked at four times a second, from a connection of their own
that is not counted among them. Waits for the client, and of PostgreSQL's own processes, are no waits.
"""

import threading
from collections import Counter
from typing import Final

import psycopg

LOOK_S: Final = 0.25  # half a millisecond of PostgreSQL each
POSITION: Final = "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"
WAITS: Final = """
    SELECT wait_event_type || ': ' || wait_event FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND wait_event_type NOT IN ('Client', 'Activity') AND pid <> pg_backend_pid()
"""


class DatabaseWatch:
    """Watches from its construction until `stop`."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._begin_bytes = self._position()
        self._looks, self._waits = 0, Counter[str]()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="database watch", daemon=True)
        self._thread.start()

    def wal_bytes(self) -> int:
        """Return how much log was written since the beginning."""
        return self._position() - self._begin_bytes

    def waits(self) -> dict[str, float]:
        """Return how many sessions waited on average until now, by what they waited for."""
        return {wait: count / max(self._looks, 1) for wait, count in self._waits.most_common()}

    def stop(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join()
        self._connection.close()

    def _position(self) -> int:
        row = self._connection.execute(POSITION).fetchone()
        assert row is not None
        return int(row[0])

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            self._waits.update(wait for (wait,) in self._connection.execute(WAITS))
            self._looks += 1
