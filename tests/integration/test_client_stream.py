"""The stream producer with a real Redis and the whole service: what was added is delivered, once for each key."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
import redis
import redis.asyncio

from mailkeep.client import Mail, StreamProducer, TemplateMail, stream_fields
from mailkeep.client.stream import STREAM
from mailkeep.store.embedded import start_redis

MAIL = Mail(to="ann@example.org", subject="Grüße", text="It works.")


@pytest.fixture(scope="module")
def redis_socket():
    """Run a Redis; yields the path of its socket."""
    folder = Path(tempfile.mkdtemp(prefix="mk-redis-"))
    folder.chmod(0o755)  # Redis may run as another user
    server = start_redis(folder)
    if server is None:
        pytest.skip("no Redis is installed")
    yield str(server.socket)
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture(params=[True, False], ids=["decoded", "bytes"])
def client(request, redis_socket):
    """Yield a client of an empty Redis, of each kind of answers."""
    with redis.Redis(unix_socket_path=redis_socket, decode_responses=request.param) as opened:
        opened.flushall()
        yield opened


async def settled(served, delivery_id):
    """Wait until a delivery is there and has ended."""
    async with asyncio.timeout(60):
        while (await served.get(f"/api/v1/internal/deliveries/{delivery_id}")).status_code == 404:
            await asyncio.sleep(0.02)
    return await served.settled(delivery_id, "sent")


@pytest.fixture
async def consuming(serve, next_hop, redis_socket):
    """Run a service that reads the stream and sends to `next_hop`."""
    return await serve(
        MAIL_REDIS_MASTER_ADDR=redis_socket,
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
    )


async def test_mail_from_the_stream_is_delivered_under_the_id_that_was_answered(client, consuming, next_hop):
    """Ready content and a template, by a blocking client."""
    variables = {"product": "Notes", "start_url": "https://example.com"}
    templated = TemplateMail(to="bo@example.org", template_id="welcome", locale="de", variables=variables)
    for mail in (MAIL, templated):
        added = StreamProducer(client).add(mail)
        assert type(added.entry_id) is str
        delivery = await settled(consuming, added.delivery_id)
        assert (delivery["source"], delivery["class"]) == ("notification", "transactional")
    assert [message.rcpt_tos for message in next_hop.messages] == [["ann@example.org"], ["bo@example.org"]]


async def test_an_async_client_adds_alike(redis_socket, consuming):
    """The same with a client that is awaited."""
    async with redis.asyncio.Redis(unix_socket_path=redis_socket) as opened:
        added = await StreamProducer(opened).add_async(MAIL)
    await settled(consuming, added.delivery_id)


async def test_fields_added_twice_are_one_delivery(client, consuming, next_hop):
    """After an error of Redis the caller adds the same fields again."""
    fields = stream_fields(MAIL)
    for _ in range(2):
        client.xadd(STREAM, fields)
    last = StreamProducer(client).add(MAIL)
    await settled(consuming, fields["delivery_id"])
    await settled(consuming, last.delivery_id)
    assert len(next_hop.messages) == 2


def test_a_cap_keeps_the_stream_short(client):
    """With a maximal length old entries leave; without one none does."""
    for _ in range(300):
        StreamProducer(client, stream="whole").add(MAIL)
        StreamProducer(client, stream="capped", max_length=10).add(MAIL)
    assert client.xlen("whole") == 300
    assert client.xlen("capped") < 200
