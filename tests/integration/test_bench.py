"""`mailkeep bench` as a process, against a service with a sinkhole in the test's own process."""

import asyncio
import json
import os
import signal
import sys

import asyncpg
import pytest
from stream_kit import Valkey

from mailkeep.sinkhole.mode_source import FixedModeSource
from mailkeep.sinkhole.script import parse_mode
from mailkeep.sinkhole.server import Sinkhole

TOKEN = "0123456789abcdef-of-the-tests"
PATIENCE_S = 90


@pytest.fixture
async def sinkhole():
    """Run a sinkhole that accepts."""
    running = Sinkhole(FixedModeSource(parse_mode("accept")))
    await running.start(port=0)
    yield running
    await running.stop()


@pytest.fixture
async def deployment(serve, sinkhole):
    """Yield a function that starts a service whose only next hop is the sinkhole."""

    async def start(**environ):
        address = f"127.0.0.1:{sinkhole.port}"
        base = {
            "MAIL_SMTP_MODE": "smtp",
            "MAIL_SMTP_ADDR": address,
            "MAIL_SMTP_FROM_EMAIL": "bench@sinkhole.test",
            "MAIL_SINKHOLE_ADDR": address,
        }
        return await serve(**(base | environ))

    return start


async def bench(dsn, served, *arguments, **environ):
    """Start the command against `served`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAIL_")}
    environment |= {"MAIL_POSTGRES_DSN": dsn, "MAIL_INTERNAL_HTTP_ADDR": f"127.0.0.1:{served.port}"}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mailkeep",
        "bench",
        *map(str, arguments),
        env=environment | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process):
    """Return its exit code, what it said, and what it complained of."""
    async with asyncio.timeout(PATIENCE_S):
        said, complaints = await process.communicate()
    return process.returncode, said.decode(), complaints.decode()


async def statuses(dsn):
    """Return how many deliveries have which status."""
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("SELECT status, count(*) AS count FROM mail.deliveries GROUP BY status")
    await connection.close()
    return {row["status"]: row["count"] for row in rows}


async def test_every_mail_is_counted_and_goes_to_the_sinkhole_alone(deployment, sinkhole, dsn):
    """All mails and the probe are in the sinkhole, for recipients of sinkhole.test, and the report has them all."""
    process = await bench(dsn, await deployment(), "--messages", 60, "--json")
    code, said, complaints = await ended(process)
    assert code == 0, complaints
    found = json.loads(said)["findings"]
    assert (found["accepted"], found["sent"], found["not_sent"], found["refused"]) == (60, 60, {}, 0)
    assert found["accepted_per_s"] > 0
    assert found["sent_per_s"] > 0
    assert 0 < found["requests"]["p50_ms"] <= found["requests"]["p99_ms"]
    assert 0 < found["accepted_to_sent"]["p50_ms"] <= found["accepted_to_sent"]["p99_ms"]
    assert found["cpu"]["replicas"] == 1
    taken = [recipient for message in sinkhole.capture.messages for recipient in message.recipients]
    assert len(taken) == 61
    assert all(recipient.endswith("@sinkhole.test") for recipient in taken)


async def test_the_stream_is_measured_alike(deployment, dsn, tmp_path):
    """By the stream every mail arrives, and the numbers of both ends agree."""
    valkey = Valkey(tmp_path).start()
    try:
        redis = str(valkey.socket)
        served = await deployment(MAIL_REDIS_MASTER_ADDR=redis)
        arguments = ("--via", "stream", "--messages", 250, "--json")
        process = await bench(dsn, served, *arguments, MAIL_REDIS_MASTER_ADDR=redis)
        code, said, complaints = await ended(process)
        assert code == 0, complaints
        found = json.loads(said)["findings"]
        assert (found["accepted"], found["sent"], found["requests"]) == (250, 250, None)
        assert await statuses(dsn) == {"sent": 251}
        await served.service.stop()
    finally:
        valkey.stop()


async def test_nobody_else_gets_mail(deployment, dsn):
    """Another domain than the sinkhole's is wrong usage, and nothing is sent."""
    served = await deployment()
    for domain in ("example.org", "sinkhole.test.example.org", "notsinkhole.test"):
        code, _, complaints = await ended(await bench(dsn, served, "--domain", domain))
        assert code == 2
        assert "sinkhole.test" in complaints
    assert await statuses(dsn) == {}


async def test_a_deployment_without_a_sinkhole_is_told_so(sending, dsn):
    """Without MAIL_SINKHOLE_ADDR nothing is sent, and the line says what to set."""
    code, _, complaints = await ended(await bench(dsn, sending))
    assert code == 1
    assert "MAIL_SINKHOLE_ADDR" in complaints
    assert await statuses(dsn) == {}


async def test_stub_mode_is_told(served, serve, dsn):
    """A service that sends nothing carries nothing, and the line says why."""
    stub = await serve(MAIL_SINKHOLE_ADDR="127.0.0.1:9")
    code, _, complaints = await ended(await bench(dsn, stub))
    assert code == 1
    assert "MAIL_SMTP_MODE=stub" in complaints


async def test_a_wrong_token_is_told(deployment, dsn, tmp_path):
    """A token that the listener does not know ends it with one line about the token; the right one is taken."""
    served = await deployment(MAIL_INTERNAL_HTTP_TOKENS=TOKEN)
    file = tmp_path / "token"
    file.write_text("another-token-of-16\n")
    code, _, complaints = await ended(await bench(dsn, served, "--token-file", file))
    assert code == 1
    assert "--token-file" in complaints
    assert "another-token" not in complaints
    file.write_text(f"{TOKEN}\n")
    code, said, complaints = await ended(await bench(dsn, served, "--token-file", file, "--messages", 5))
    assert code == 0, complaints
    assert "Every mail arrived." in said


async def test_a_sinkhole_that_defers_is_told_and_leaves_no_backlog(deployment, sinkhole, dsn):
    """The first mail does not arrive: the reply is told, and the mail is cancelled."""
    sinkhole.source.mode = parse_mode("defer")
    code, _, complaints = await ended(await bench(dsn, await deployment()))
    assert code == 1
    assert "421 4.3.2" in complaints
    assert "sinkhole mode accept" in complaints
    assert await statuses(dsn) == {"cancelled": 1}


async def test_what_does_not_arrive_is_cancelled(deployment, sinkhole, dsn):
    """A sinkhole that turns to defer in between: the rest is cancelled when patience ends, told, and no success."""
    served = await deployment()
    process = await bench(dsn, served, "--messages", 40, "--connections", 1, "--patience", 3, "--json")
    async with asyncio.timeout(PATIENCE_S):
        while sinkhole.capture.total_count < 3:
            await asyncio.sleep(0.001)
    sinkhole.source.mode = parse_mode("defer")
    code, said, _ = await ended(process)
    found = json.loads(said)["findings"]
    assert code == 1
    assert found["accepted"] == 40
    assert found["not_sent"] == {"cancelled": 40 - found["sent"]}
    assert await statuses(dsn) == {"sent": found["sent"] + 1, "cancelled": 40 - found["sent"]}


async def test_ctrl_c_ends_it_in_order(deployment, sinkhole, dsn):
    """SIGINT ends the sending: what was accepted is awaited and reported, and it leaves with 130."""
    process = await bench(dsn, await deployment(), "--messages", 200_000, "--seconds", 600)
    async with asyncio.timeout(PATIENCE_S):
        while sinkhole.capture.total_count < 20:
            await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    code, said, complaints = await ended(process)
    assert code == 130, complaints
    assert "Every mail arrived." in said
    assert (await statuses(dsn)).keys() == {"sent"}


async def test_a_service_that_is_away_is_told(deployment, dsn, unused_tcp_port):
    """Nobody listens at the URL: exit code 69, as for every server that is away."""
    served = await deployment()
    code, _, complaints = await ended(
        await bench(dsn, served, "--url", f"http://127.0.0.1:{unused_tcp_port}")
    )
    assert code == 69
    assert "mailkeep serve" in complaints
