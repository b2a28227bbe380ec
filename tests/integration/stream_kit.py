"""What the tests of stream and SQL intake share: a Redis that can be hurt, entries, and what became of them."""

import asyncio
import json
import signal
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import asyncpg
import redis
import uuid_utils
from redis.exceptions import RedisError

from mailkeep.intake.stream import GROUP, STREAM
from mailkeep.store.embedded import _redis_binary
from mailkeep.store.embedded_process import own_identity, running

PATIENCE_S = 60.0
"""For anything that happens by itself: generous, since the machine may be slow and busy; idle, it is a second or two."""
LOOK_S = 0.05
"""Between two looks at what another process does, which tells of nothing: a connection each, so not as often as can be."""


class Valkey:
    """A real server of the test's own on a Unix socket and, with `port`, on loopback; it keeps what it was given."""

    def __init__(self, folder: Path, *, port: int = 0):
        folder.mkdir(exist_ok=True)
        self.socket, self.port = folder / "s", port
        self._log = folder / "log"
        self._command = [str(_redis_binary()), "--dir", str(folder), "--port", str(port)]
        self._command += ["--unixsocket", str(self.socket), "--appendonly", "yes", "--save", ""]
        self._running = ExitStack()

    def start(self, *options: str, ready: bool = True):
        """Start it, or start it again over what it kept; `ready`: wait until it answers."""
        command = [*self._command, *options]
        self._process = self._running.enter_context(
            running(command, identity=own_identity(), log=self._log, stop_signal=signal.SIGTERM)
        )
        deadline_s = time.monotonic() + PATIENCE_S
        while ready:
            with suppress(RedisError):
                self.do("PING")
                break
            assert time.monotonic() < deadline_s, self._log.read_text()
            time.sleep(LOOK_S)
        return self

    def client(self, **options):
        """Return a blocking client."""
        return redis.Redis(
            unix_socket_path=str(self.socket), socket_timeout=PATIENCE_S, protocol=2, **options
        )

    def do(self, *command, **options):
        """Run one command."""
        with self.client(**options) as client:
            return client.execute_command(*command)

    def signal(self, number):
        """Send it a signal."""
        self._process.send_signal(number)

    def kill9(self):
        """Kill it as a crash does and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        self._running.close()

    def stop(self):
        """End it, also when it is frozen."""
        if self._process.poll() is None:
            self.kill9()


def fields(number=0, **changes):
    """Return the fields of an entry that can be taken, changed; None leaves a field out."""
    payload = {"to": [f"ann{number}@example.org"], "subject": "Hello", "text": "It works."}
    entry = {
        "delivery_id": str(uuid_utils.uuid7()),
        "source": "notification",
        "payload_mode": "rendered",
        "idempotency_key": f"order-{number}",
        "requested_at_ms": str(time.time_ns() // 1_000_000),
        "payload_json": json.dumps(payload | changes.pop("payload", {})),
    } | changes
    return {name: value for name, value in entry.items() if value is not None}


def add(valkey, *entries):
    """Add entries in one go and return their ids."""
    with valkey.client() as client:
        pipeline = client.pipeline(transaction=False)
        for entry in entries:
            pipeline.xadd(STREAM, entry)
        return [entry_id.decode() for entry_id in pipeline.execute()]


def pending(valkey):
    """Return how many entries were read and are not acknowledged."""
    return valkey.do("XPENDING", STREAM, GROUP)["pending"]


def unread(valkey):
    """Return how many entries the group has not read yet, None where there is no group or Redis can't tell."""
    with valkey.client() as client:
        return next((group["lag"] for group in client.xinfo_groups(STREAM)), None)


async def until(condition, what, within_s=PATIENCE_S):
    """Return the first true answer of `condition` (run in a thread), polled; fail, naming `what` was awaited."""
    deadline_s = time.monotonic() + within_s
    while True:
        with suppress(RedisError):
            answer = await asyncio.to_thread(condition)
            if answer:
                return answer
        assert time.monotonic() < deadline_s, f"waited {within_s:g} s in vain until {what}"
        await asyncio.sleep(LOOK_S)


async def drained(valkey):
    """Wait until every entry was read and acknowledged."""
    await until(lambda: unread(valkey) == 0 and pending(valkey) == 0, "the stream is taken")


async def query(dsn, statement, *arguments):
    """Run a statement of a test's own."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(statement, *arguments)
    finally:
        await connection.close()


async def deliveries(dsn):
    """Return the key and the id of every delivery; more than one of a key fails."""
    found = await query(
        dsn,
        "SELECT k.key, d.id::text FROM mail.deliveries d LEFT JOIN mail.idempotency_keys k ON k.delivery_id = d.id",
    )
    assert len({row["key"] for row in found}) == len(found)
    return {row["key"]: row["id"] for row in found}


async def counted(dsn, wanted, what="every command is a delivery"):
    """Wait until there are `wanted` deliveries, and see that there are no more."""
    deadline_s = time.monotonic() + PATIENCE_S
    while (count := (await query(dsn, "SELECT count(*) FROM mail.deliveries"))[0][0]) < wanted:
        assert time.monotonic() < deadline_s, f"waited in vain until {what}: {count} of {wanted}"
        await asyncio.sleep(LOOK_S)
    assert count == wanted


async def malformed(dsn):
    """Return the malformed commands, the oldest first."""
    return await query(dsn, "SELECT * FROM mail.malformed_commands ORDER BY id")
