"""Redis behind sentinels: the consumer follows the master through a switch-over and a crash, under a trickle of commands."""

import asyncio
import shutil
import signal
import socket
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError
from stream_kit import STREAM, Valkey, deliveries, fields, malformed, until

from mailkeep.store.embedded import _redis_binary
from mailkeep.store.embedded_process import own_identity, running

MASTER = "mymaster"


def free_port():
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Guarded:
    """A master, a replica and one sentinel that watches them."""

    def __init__(self, folder):
        ports = [free_port(), free_port()]
        self.servers = [Valkey(folder / str(port), port=port) for port in ports]
        self.servers[0].start()
        self.servers[1].start("--replicaof", f"127.0.0.1 {ports[0]}")
        self.port = free_port()
        configuration = folder / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor {MASTER} 127.0.0.1 {ports[0]} 1\n"
            f"sentinel down-after-milliseconds {MASTER} 2000\nsentinel failover-timeout {MASTER} 3000\n"
        )
        command = [str(_redis_binary()), str(configuration), "--sentinel"]
        self._sentinel = ExitStack()
        self._sentinel.enter_context(
            running(command, identity=own_identity(), log=folder / "log", stop_signal=signal.SIGTERM)
        )

    def master(self):
        """Return the server that is master now, None while there is none."""
        for server in self.servers:
            with suppress(RedisError):
                if server.do("ROLE")[0] == b"master":
                    return server
        return None

    def replicated(self):
        """Whether the master has a replica that keeps up."""
        role = self.servers[1].do("ROLE")
        return role[0] == b"slave" and role[3] == b"connected"

    def switched_over(self, first):
        """Whether another server than `first` is master; the sentinel is asked again while it has not begun or has given up."""
        if int(self.do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)[1]) == first.port:
            self.do("SENTINEL", "FAILOVER", MASTER)
        return self.master() not in {first, None}

    def do(self, *command):
        """Ask the sentinel."""
        with Redis(port=self.port, protocol=2, socket_timeout=10) as client:
            return client.execute_command(*command)

    def stop(self):
        """End all of them."""
        self._sentinel.close()
        for server in self.servers:
            server.stop()


@pytest.fixture
async def guarded():
    """Run master, replica and sentinel until they know each other."""
    folder = Path(tempfile.mkdtemp(prefix="mk-sentinel-"))
    guarding = Guarded(folder)
    await until(guarding.replicated, "the replica follows")
    await until(
        lambda: len(guarding.do("SENTINEL", "REPLICAS", MASTER)) == 1, "the sentinel knows the replica"
    )
    yield guarding
    guarding.stop()
    shutil.rmtree(folder)


class Trickle:
    """A producer that adds a command every few milliseconds, and adds it again when Redis did not answer."""

    def __init__(self, port):
        self.added = []
        self._is_stopping = False
        self._sentinels = Sentinel([("127.0.0.1", port)], socket_timeout=1)
        self._master = self._sentinels.master_for(MASTER, socket_timeout=1, protocol=2)
        self._adding = asyncio.create_task(self._add())

    async def _add(self):
        while not self._is_stopping:
            entry = fields(len(self.added))
            while not await self._added(entry):
                await asyncio.sleep(0.1)
            self.added.append(entry["idempotency_key"])
            await asyncio.sleep(0.01)

    async def _added(self, entry):
        with suppress(RedisError, OSError):
            return await self._master.xadd(STREAM, entry)
        return None

    async def more(self, count):
        """Wait until so many more were added."""
        wanted = len(self.added) + count
        await until(lambda: len(self.added) >= wanted, f"{wanted} commands are added")

    async def stop(self):
        """Add no more."""
        self._is_stopping = True
        await self._adding
        await self._master.aclose()
        await self._sentinels.aclose()


@pytest.fixture
async def trickle(guarded):
    """Run a producer."""
    producer = Trickle(guarded.port)
    yield producer
    await producer.stop()


async def settled(guarded, dsn):
    """Wait until every command that the master holds is a delivery; returns the deliveries' keys."""
    with guarded.master().client() as client:
        kept = {entry[b"idempotency_key"].decode() for _id, entry in client.xrange(STREAM)}
    for _ in range(600):
        taken = set(await deliveries(dsn))
        if kept <= taken:
            return taken
        await asyncio.sleep(0.1)
    raise AssertionError(f"{len(kept - taken)} commands were not taken")


async def test_the_consumer_follows_a_switch_over(serve, guarded, trickle, dsn):
    """When the master is demoted in order (READONLY on its open connections), every command is one delivery."""
    await serve(MAIL_REDIS_SENTINEL_ADDRS=f"127.0.0.1:{guarded.port}")
    await trickle.more(50)
    first = guarded.master()
    await until(lambda: guarded.switched_over(first), "the replica is master")
    await trickle.more(50)
    await trickle.stop()
    assert await settled(guarded, dsn) <= set(trickle.added)
    assert await malformed(dsn) == []


async def test_the_consumer_follows_a_fail_over(serve, guarded, trickle, dsn):
    """When the master is killed, what its replica has and all that comes later is taken; nothing is taken twice."""
    await serve(MAIL_REDIS_SENTINEL_ADDRS=f"127.0.0.1:{guarded.port}")
    await trickle.more(50)
    first = guarded.master()
    first.kill9()
    await until(lambda: guarded.master() not in {first, None}, "the replica is master")
    await trickle.more(50)
    await trickle.stop()
    taken = await settled(guarded, dsn)
    assert set(trickle.added[-50:]) <= taken <= set(trickle.added)
    assert await malformed(dsn) == []
