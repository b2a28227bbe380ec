"""Consumers share the stream and take over from each other: each entry ends once."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from stream_kit import (
    GROUP,
    STREAM,
    Valkey,
    add,
    counted,
    deliveries,
    drained,
    fields,
    malformed,
    pending,
    until,
)

from mailkeep.intake import commands, stream

TRIMMED = "stream entries were trimmed before they were taken"


@pytest.fixture
def valkey():
    """Run a server of the test's own, in a folder short enough for its socket."""
    folder = Path(tempfile.mkdtemp(prefix="mk-valkey-"))
    server = Valkey(folder).start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def impatient(monkeypatch):
    """Have abandoned entries claimed soon."""
    monkeypatch.setattr(stream, "CLAIM_IDLE_MS", 300)
    monkeypatch.setattr(stream, "LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(stream, "RETRY_LAST_S", 0.5)


def said(lines, event):
    """Return the lines of `event`."""
    return [line for line in lines if line["event"] == event]


def read_as(valkey, name, count):
    """Read entries as a consumer that dies before it acknowledges; returns their ids."""
    answer = valkey.do("XREADGROUP", "GROUP", GROUP, name, "COUNT", count, "STREAMS", STREAM, ">")
    return [entry_id.decode() for entry_id, _fields in answer[0][1]]


async def test_two_replicas_share_the_stream_without_doubles(serve, valkey, dsn):
    """2,000 entries and their repetitions over two consumers are 2,000 deliveries, and both did their part."""
    entries = [fields(number) for number in range(2000)]
    add(valkey, *entries, *entries[::10])
    services = [await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket)) for _ in range(2)]
    add(valkey, *(fields(number) for number in range(2000, 4000)))
    await drained(valkey)
    await counted(dsn, 4000)
    assert await malformed(dsn) == []
    consumers = {consumer["name"].decode() for consumer in valkey.client().xinfo_consumers(STREAM, GROUP)}
    assert consumers == {str(served.service.replica.id) for served in services}


async def test_what_a_dead_consumer_left_is_claimed(serve, valkey, dsn, impatient):
    """Entries that were read and never acknowledged are taken after their idle time, without a restart of anything."""
    await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket))
    await until(lambda: valkey.do("EXISTS", STREAM), "the group is made")
    script = (
        "for i = 1, 20 do redis.call('XADD', KEYS[1], '*', unpack(ARGV, (i - 1) * 12 + 1, i * 12)) end "
        "return #redis.call('XREADGROUP', 'GROUP', 'mailkeep', 'dead', 'COUNT', 20, 'STREAMS', KEYS[1], '>')"
    )
    flat = [part for number in range(20) for pair in fields(number).items() for part in pair]
    valkey.do("EVAL", script, 1, STREAM, *flat)
    await drained(valkey)
    await counted(dsn, 20)


async def test_a_claim_leaves_the_living_alone(serve, valkey, dsn):
    """What another consumer read a moment ago is not touched."""
    valkey.do("XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM")
    add(valkey, *(fields(number) for number in range(5)))
    read_as(valkey, "alive", 3)
    await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket))
    await counted(dsn, 2)
    assert set(await deliveries(dsn)) == {"order-3", "order-4"}
    assert pending(valkey) == 3


async def test_pending_entries_that_were_trimmed_end_and_are_told(serve, valkey, dsn, impatient, log_lines):
    """Entries whose body is gone are acknowledged, reported and looked at once; the rest goes on."""
    valkey.do("XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM")
    add(valkey, *(fields(number) for number in range(6)))
    read_as(valkey, "dead", 6)
    valkey.do("XTRIM", STREAM, "MAXLEN", "2")
    await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket))
    await drained(valkey)
    assert set(await deliveries(dsn)) == {"order-4", "order-5"}
    await asyncio.sleep(1)
    assert [line["count"] for line in said(log_lines, TRIMMED)] == [4]


async def test_after_a_broken_connection_its_own_entries_come_first(serve, valkey, dsn):
    """What was given to this consumer and never acknowledged is taken as soon as it is connected again, trimmed or not."""
    served = await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket))
    await until(lambda: valkey.do("EXISTS", STREAM), "the group is made")
    name = str(served.service.replica.id)
    script = (
        "for i = 1, 5 do redis.call('XADD', KEYS[1], '*', unpack(ARGV, (i - 1) * 12 + 2, i * 12 + 1)) end "
        "local n = #redis.call('XREADGROUP', 'GROUP', 'mailkeep', ARGV[1], 'COUNT', 5, 'STREAMS', KEYS[1], '>') "
        "redis.call('XTRIM', KEYS[1], 'MAXLEN', 3) return n"
    )
    flat = [part for number in range(5) for pair in fields(number).items() for part in pair]
    valkey.do("EVAL", script, 1, STREAM, name, *flat)
    assert pending(valkey) == 5
    valkey.client().client_kill_filter(_type="normal", skipme=True)
    await drained(valkey)
    assert set(await deliveries(dsn)) == {"order-2", "order-3", "order-4"}


async def test_large_entries_are_read_few_at_a_time(serve, valkey, dsn, monkeypatch):
    """The next read is sized by the last one, so that a batch stays near its bound of bytes."""
    monkeypatch.setattr(stream, "BATCH_BYTES", 200_000)
    text = "x" * 100_000
    add(valkey, *(fields(number, payload={"text": text}) for number in range(40)))
    sizes = []
    taken = commands.CommandIntake.take

    async def counting(self, batch):
        sizes.append(len(batch))
        return await taken(self, batch)

    monkeypatch.setattr(commands.CommandIntake, "take", counting)
    await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket))
    await drained(valkey)
    assert (sizes[0], set(sizes[1:])) == (stream.FIRST_BATCH, {1})
    await counted(dsn, 40)
