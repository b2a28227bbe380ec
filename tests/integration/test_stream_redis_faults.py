"""Redis fails in every way it can: the consumer says so once, comes back by itself, loses and doubles nothing it kept."""

import asyncio
import shutil
import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis.exceptions import OutOfMemoryError
from smtp_servers import free_port
from stream_kit import GROUP, STREAM, Valkey, add, deliveries, drained, fields, malformed, pending, until

from mailkeep.intake import redis_client, stream

COMPLAINT, RELIEF = "stream can't be read; trying again", "stream is read again"
TRIMMED, BEGINNING = "stream entries were trimmed before they were taken", "stream is read from its beginning"


@pytest.fixture
def valkey():
    """Run a server of the test's own, in a folder short enough for its socket."""
    folder = Path(tempfile.mkdtemp(prefix="mk-valkey-"))
    server = Valkey(folder).start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
async def streaming(serve, valkey, monkeypatch):
    """Run a service that reads the stream and looks for abandoned entries and losses often."""
    monkeypatch.setattr(stream, "LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(stream, "RETRY_LAST_S", 0.5)
    return await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket))


def said(lines, event):
    """Return the lines of `event`."""
    return [line for line in lines if line["event"] == event]


async def works(valkey, dsn, number):
    """Check that a new entry is taken."""
    add(valkey, fields(number))
    await drained(valkey)
    assert f"order-{number}" in await deliveries(dsn)


async def test_killed_again_and_again_it_loses_and_doubles_nothing_that_was_kept(
    streaming, valkey, dsn, log_lines
):
    """Through kill -9 and restarts under a trickle, every entry that Redis kept is one delivery, also with lost acknowledgements."""
    added = 0
    for _ in range(5):
        add(valkey, *(fields(number) for number in range(added, added + 200)))
        added += 200
        valkey.do("BGREWRITEAOF")
        valkey.kill9()
        await asyncio.sleep(0.2)
        await asyncio.to_thread(valkey.start)
    await drained(valkey)
    kept = {entry[b"idempotency_key"].decode() for _id, entry in valkey.client().xrange(STREAM)}
    assert kept <= set(await deliveries(dsn)) <= {f"order-{number}" for number in range(added)}
    assert await malformed(dsn) == []
    assert len(said(log_lines, COMPLAINT)) <= 5 * 3
    await works(valkey, dsn, added)


async def test_an_outage_is_said_once_and_its_end_too(streaming, valkey, dsn, log_lines):
    """However long Redis is away there is one complaint for each kind of error, and one line when it is back."""
    await works(valkey, dsn, 1)
    valkey.kill9()
    await until(lambda: said(log_lines, COMPLAINT), "the outage is noticed")
    await asyncio.sleep(3)
    kinds = [line["error"] for line in said(log_lines, COMPLAINT)]
    assert len(kinds) == len(set(kinds)) <= 3
    assert said(log_lines, RELIEF) == []
    await asyncio.to_thread(valkey.start)
    await works(valkey, dsn, 2)
    assert len(said(log_lines, RELIEF)) == 1


async def test_a_group_that_is_destroyed_is_made_again(streaming, valkey, dsn, log_lines):
    """XGROUP DESTROY under the reading consumer: all is read again, and is the deliveries it was."""
    add(valkey, *(fields(number) for number in range(50)))
    await drained(valkey)
    before = await deliveries(dsn)
    valkey.do("XGROUP", "DESTROY", STREAM, GROUP)
    await works(valkey, dsn, 50)
    assert before.items() <= (await deliveries(dsn)).items()
    assert len(await deliveries(dsn)) == 51
    assert len(said(log_lines, BEGINNING)) == 2


async def test_everything_wiped_is_begun_anew(streaming, valkey, dsn):
    """FLUSHALL takes group and stream: new commands are taken at once, although their entry ids may start again."""
    add(valkey, *(fields(number) for number in range(10)))
    await drained(valkey)
    valkey.do("FLUSHALL")
    valkey.do("XADD", STREAM, "1-1", *[part for pair in fields(10).items() for part in pair])
    await drained(valkey)
    await works(valkey, dsn, 11)
    assert len(await deliveries(dsn)) == 12
    assert await malformed(dsn) == []


async def test_a_key_of_another_type_is_survived(streaming, valkey, dsn, log_lines):
    """While something else stands at the key the consumer complains once and waits; then it reads the stream."""
    await works(valkey, dsn, 1)
    valkey.do("DEL", STREAM)
    valkey.do("SET", STREAM, "no stream")
    await until(
        lambda: [line for line in said(log_lines, COMPLAINT) if "WRONGTYPE" in line["error"]], "it is noticed"
    )
    await asyncio.sleep(2)
    assert len([line for line in said(log_lines, COMPLAINT) if "WRONGTYPE" in line["error"]]) == 1
    valkey.do("DEL", STREAM)
    await works(valkey, dsn, 2)


async def test_a_password_that_changes_is_survived(streaming, valkey, dsn, log_lines):
    """Refused without a password (NOAUTH) the consumer complains without naming one, and comes back when it may."""
    await works(valkey, dsn, 1)
    with valkey.client() as client:
        client.config_set("requirepass", "correct horse")
        client.client_kill_filter(_type="normal", skipme=True)
        await until(
            lambda: [line for line in said(log_lines, COMPLAINT) if "Authentication" in line["error"]],
            "it is refused",
        )
        client.config_set("requirepass", "")
    await works(valkey, dsn, 2)
    assert "correct horse" not in str(log_lines)


async def test_a_master_that_becomes_a_replica_is_survived(streaming, valkey, dsn, log_lines):
    """READONLY: nothing is read until the server may be written again; entries stay."""
    await works(valkey, dsn, 1)
    add(valkey, fields(2))
    await drained(valkey)
    valkey.do("REPLICAOF", "127.0.0.1", "1")
    await until(
        lambda: [line for line in said(log_lines, COMPLAINT) if "read only" in line["error"].lower()],
        "it is refused",
    )
    valkey.do("REPLICAOF", "NO", "ONE")
    await works(valkey, dsn, 3)


async def test_a_server_that_is_loading_is_waited_for(streaming, valkey, dsn, log_lines):
    """LOADING: a restart over a large data set is survived, and what it loads is taken."""
    await works(valkey, dsn, 1)
    with valkey.client() as client:
        pipeline = client.pipeline(transaction=False)
        for number in range(2000):
            pipeline.set(f"other-{number}", "x" * 100)
        pipeline.execute()
        client.bgrewriteaof()
        await until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], "the data is written")
    valkey.kill9()
    slow = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    valkey.start(*slow, ready=False)
    await until(
        lambda: [line for line in said(log_lines, COMPLAINT) if "loading" in line["error"].lower()],
        "it is loading",
    )
    await works(valkey, dsn, 2)


async def test_a_frozen_server_is_given_up_and_found_again(streaming, valkey, dsn, log_lines, monkeypatch):
    """SIGSTOP: the silence is noticed within the read timeout; when the server goes on, so does the consumer."""
    await works(valkey, dsn, 1)
    valkey.signal(signal.SIGSTOP)
    await until(
        lambda: said(log_lines, COMPLAINT), "the silence is noticed", redis_client.READ_TIMEOUT_S + 30
    )
    valkey.signal(signal.SIGCONT)
    await works(valkey, dsn, 2)


async def test_a_stop_is_prompt_whatever_redis_does(streaming, valkey):
    """A service whose Redis is frozen, or whose read is blocked, stops in a moment."""
    valkey.signal(signal.SIGSTOP)
    await asyncio.sleep(2.5)
    async with asyncio.timeout(20):
        await streaming.service.stop()


async def test_unread_entries_that_producers_trim_are_told(serve, valkey, dsn, log_lines):
    """Entries cut from the stream while nobody read are counted and reported once, and what is left is taken."""
    valkey.do("XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM")
    (first,) = add(valkey, fields(0))
    valkey.do("XREADGROUP", "GROUP", GROUP, "before", "STREAMS", STREAM, ">")
    valkey.do("XACK", STREAM, GROUP, first)
    add(valkey, *(fields(number) for number in range(1, 11)))
    valkey.do("XTRIM", STREAM, "MAXLEN", "2")
    await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket))
    await works(valkey, dsn, 11)
    assert set(await deliveries(dsn)) == {"order-9", "order-10", "order-11"}
    assert [line["count"] for line in said(log_lines, TRIMMED)] == [8]


async def test_a_consumer_of_long_ago_is_forgotten(valkey, serve, monkeypatch):
    """Names of consumers that are gone don't pile up in Redis; one that still holds an entry stays."""
    monkeypatch.setattr(stream, "FORGET_IDLE_MS", 50)
    valkey.do("XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM")
    add(valkey, fields(1))
    valkey.do("XREADGROUP", "GROUP", GROUP, "holder", "STREAMS", STREAM, ">")
    valkey.do("XGROUP", "CREATECONSUMER", STREAM, GROUP, "gone")
    await asyncio.sleep(0.2)
    monkeypatch.setattr(stream, "CLAIM_IDLE_MS", 600_000)
    await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket))

    def names():
        return {consumer["name"] for consumer in valkey.client().xinfo_consumers(STREAM, GROUP)}

    await until(lambda: b"gone" not in names(), "it is forgotten")
    assert b"holder" in names()
    assert pending(valkey) == 1


async def test_a_server_without_memory_is_read_on(streaming, valkey, dsn):
    """OOM: producers are refused and told so; what they had added before is taken, and more when there is room again."""
    await works(valkey, dsn, 1)
    with valkey.client() as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(OutOfMemoryError):
            client.xadd(STREAM, fields(2))
        client.config_set("maxmemory", "0")
        client.xadd(STREAM, fields(3))
        client.config_set("maxmemory", "1")
    await drained(valkey)
    assert set(await deliveries(dsn)) == {"order-1", "order-3"}
    valkey.do("CONFIG", "SET", "maxmemory", "0")
    await works(valkey, dsn, 4)


@pytest.fixture
def node():
    """Yield what starts a server that is a node of a cluster, without slots."""
    with ExitStack() as stack:

        def start():
            folder = Path(tempfile.mkdtemp(prefix="mk-valkey-"))
            stack.callback(shutil.rmtree, folder)
            server = Valkey(folder, port=free_port())
            server.bus_port = free_port()
            stack.callback(server.stop)
            options = ("--cluster-enabled", "yes", "--cluster-port", str(server.bus_port))
            # One that gives its only slot back must not become a replica meanwhile.
            return server.start(*options, "--cluster-allow-replica-migration", "no")

        yield start


async def is_up(server):
    """Wait until a cluster serves; a node takes part two seconds after its start."""
    await until(lambda: b"cluster_state:ok" in server.do("CLUSTER", "INFO"), "the cluster is up")


def complaints(lines, kind):
    """Return the complaints of one kind of error."""
    return [line["error"] for line in said(lines, COMPLAINT) if line["error"].startswith(kind)]


async def test_a_cluster_that_is_down_is_survived(serve, node, dsn, log_lines, monkeypatch):
    """CLUSTERDOWN: a cluster that has the stream nowhere is complained of once and asked again."""
    monkeypatch.setattr(stream, "RETRY_LAST_S", 0.5)
    server = node()
    await serve(MAIL_REDIS_MASTER_ADDR=str(server.socket))
    await until(lambda: complaints(log_lines, "ClusterDownError"), "it is noticed")
    await asyncio.to_thread(server.do, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    await is_up(server)
    await works(server, dsn, 1)
    kinds = complaints(log_lines, "")
    assert len(kinds) == len(set(kinds)) <= 2  # the slot is not served; the cluster is down
    assert len(said(log_lines, RELIEF)) == 1


async def test_a_stream_that_moves_to_another_node_is_said_and_waited_for(
    serve, node, dsn, log_lines, monkeypatch
):
    """ASK and MOVED: who has the stream now is said once, with the setting that names it; back again, it is read on."""
    monkeypatch.setattr(stream, "RETRY_LAST_S", 0.5)
    own, other = node(), node()
    own.do("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    own.do("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
    await is_up(own)
    await until(lambda: b"cluster_slots_ok:16384" in other.do("CLUSTER", "INFO"), "they have met")
    await serve(MAIL_REDIS_MASTER_ADDR=str(own.socket))
    await works(own, dsn, 1)
    await asyncio.to_thread(reshard, own, other)
    moved = f"the cluster has the stream at 127.0.0.1:{other.port}"
    await until(lambda: complaints(log_lines, f"MovedError: {moved}"), "the move is noticed")
    add(other, fields(2))
    await asyncio.sleep(2)
    kinds = complaints(log_lines, "")
    assert len(kinds) == len(set(kinds))
    assert all("MAIL_REDIS_MASTER_ADDR" in kind for kind in complaints(log_lines, "MovedError"))
    assert said(log_lines, RELIEF) == []
    await asyncio.to_thread(reshard, other, own)
    await works(own, dsn, 3)
    assert set(await deliveries(dsn)) == {"order-1", "order-2", "order-3"}
    assert len(said(log_lines, RELIEF)) == 1


def reshard(giver, taker):
    """Move the stream as a cluster's own tools do, its group included."""
    slot = giver.do("CLUSTER", "KEYSLOT", STREAM)
    giver_id, taker_id = (server.do("CLUSTER", "MYID").decode() for server in (giver, taker))
    taker.do("CLUSTER", "SETSLOT", slot, "IMPORTING", giver_id)
    giver.do("CLUSTER", "SETSLOT", slot, "MIGRATING", taker_id)
    giver.do("MIGRATE", "127.0.0.1", taker.port, STREAM, 0, 5000)
    for server in (taker, giver):
        server.do("CLUSTER", "SETSLOT", slot, "NODE", taker_id)
