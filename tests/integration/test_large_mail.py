"""Large mail on the whole service: it arrives whole by every way in, once, and holds up nobody while it is worked on.

What is worked on aside is held up by a call that has the thread, so that these moments last as long as a test wants.
"""

import asyncio
import base64
import json
import random
from contextlib import asynccontextmanager
from email import message_from_bytes

import pytest
from http_kit import DELIVERIES, LOGIN_CODES, command, login_code
from stream_kit import Valkey, add, counted, drained, fields, malformed, query

from held_call import PATIENCE_S, HeldCall
from mailkeep.aside import LARGE_BYTES, aside
from mailkeep.core.command import CommandRules, DeliveryRequest, parse_request
from mailkeep.intake.http import _DELIVERY
from mailkeep.store.sealing import new_key

FILE = random.Random(4).randbytes(6 * LARGE_BYTES)


def with_file(content=FILE, **fields):
    """Return a command with a file."""
    attachment = {"filename": "big.bin", "content": base64.b64encode(content).decode()}
    return command(payload={"attachments": [attachment]}, **fields)


def file_of(message):
    """Return the file in a message as it came over the wire."""
    (file,) = (part for part in message_from_bytes(message).walk() if part.get_filename())
    return file.get_payload(decode=True)


@asynccontextmanager
async def thread_held():
    """Have the thread aside; yields what lets it go, which happens at the end anyway."""
    held = HeldCall()
    async with asyncio.timeout(PATIENCE_S):
        holding = asyncio.create_task(aside(held))
        try:
            await held.begun.wait()
            yield held.let_go
        finally:
            held.let_go()
            await holding


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_a_large_mail_arrives_whole(serve, next_hop, tmp_path, is_sealed):
    """A file of some megabytes comes out at the next hop as it went in, sealed at rest or not, and leaves nothing held."""
    keys = tmp_path / "keys"
    keys.write_text(new_key("k"))
    keys.chmod(0o600)
    sending = await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
        **{"MAIL_PAYLOAD_KEYS_FILE": str(keys)} if is_sealed else {},
    )
    answer = await sending.post(DELIVERIES, with_file())
    assert answer.status_code == 202
    await sending.settled(answer.json()["delivery_id"], "sent")
    (message,) = next_hop.messages
    assert file_of(message.content) == FILE


async def test_others_are_served_while_a_large_mail_waits_for_its_turn(sending, next_hop):
    """While the thread is busy, small mail is taken and sent; the large one is answered afterwards."""
    async with thread_held() as let_go:
        large = asyncio.create_task(sending.post(DELIVERIES, with_file(), key="large"))
        code = await sending.post(LOGIN_CODES, login_code(), key="code")
        await sending.settled(code.json()["delivery_id"], "sent")
        small = await sending.post(DELIVERIES, command(), key="small")
        await sending.settled(small.json()["delivery_id"], "sent")
        assert not large.done()
        let_go()
        assert (await large).status_code == 202
    await sending.settled(large.result().json()["delivery_id"], "sent")
    assert [file_of(message.content) for message in next_hop.messages[2:]] == [FILE]


async def test_the_same_large_command_twice_at_once_is_one_delivery(served, dsn):
    """Both callers get the same id, one of them as a replay; another large command under the key is refused."""
    async with thread_held() as let_go:
        calls = [asyncio.create_task(served.post(DELIVERIES, with_file(), key="k")) for _ in range(2)]
        other = asyncio.create_task(served.post(DELIVERIES, with_file(FILE[1:]), key="other"))
        let_go()
        answers = await asyncio.gather(*calls)
        await other
    assert [answer.status_code for answer in answers] == [202, 202]
    assert len({answer.json()["delivery_id"] for answer in answers}) == 1
    assert sorted("idempotent-replayed" in answer.headers for answer in answers) == [False, True]
    conflict = await served.post(DELIVERIES, with_file(FILE[1:]), key="k")
    assert (conflict.status_code, conflict.json()["code"]) == (422, "idempotency_conflict")
    await counted(dsn, 2)


async def test_a_caller_that_leaves_meanwhile_leaves_nothing_behind(served, dsn):
    """An acceptance that is cancelled while its mail is worked on stores nothing and reserves nothing; the next one goes on."""
    request = _DELIVERY.decode(json.dumps(with_file()))
    assert isinstance(request, DeliveryRequest)
    large = parse_request(request, CommandRules())
    accept = served.service._accept
    async with thread_held():
        leaving = asyncio.create_task(accept.accept(large, key="k"))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
    assert leaving.cancelled()
    await counted(dsn, 0)
    assert not (await accept.accept(large, key="k")).replayed
    await counted(dsn, 1)


async def test_a_stop_waits_for_large_mail_that_is_worked_on(serve, dsn):
    """A service that stops answers what it had taken in: the mail is kept, as its caller is told."""
    served = await serve()
    async with thread_held() as let_go:
        call = asyncio.create_task(served.post(DELIVERIES, with_file()))
        async with asyncio.timeout(PATIENCE_S):
            while not served.service._listener._server.server_state.tasks:
                await asyncio.sleep(0.01)
        stopping = asyncio.create_task(served.service.stop())
        await asyncio.sleep(0)
        let_go()
        assert (await call).status_code == 202
        await stopping
    found = await query(dsn, "SELECT octet_length(message) AS size FROM mail.payloads")
    assert [row["size"] > len(FILE) for row in found] == [True]


async def test_a_large_body_that_is_wrong_is_refused_and_gives_its_memory_back(served, dsn):
    """What is wrong with a large body is a problem as with a small one; nothing of it counts as held afterwards."""
    for body, code in (
        (json.dumps(with_file())[:-1], "invalid_json"),
        (json.dumps(with_file(source="nobody")), "unsupported_source"),
        (json.dumps(with_file() | {"x": 1}), "unknown_field"),
    ):
        answer = await served.post(DELIVERIES, body.encode())
        assert answer.json()["code"] == code
    await counted(dsn, 0)
    await served.post(DELIVERIES, with_file())
    assert served.service._listener._server.config.app._held_bytes == 0


async def test_large_commands_of_a_batch_are_taken(served, dsn):
    """A batch that is large, with commands that are and others, has an answer for each."""
    batch = {"commands": [with_file(), command(), command(payload={"to": []}), with_file(FILE[1:])]}
    answer = await served.post(f"{DELIVERIES}/batch", batch)
    assert [item["status"] for item in answer.json()["answers"]] == [202, 202, 422, 202]
    await counted(dsn, 3)


async def test_large_commands_of_stream_and_sql_are_taken(serve, dsn, tmp_path):
    """A large entry and a large enqueued command are deliveries; one that is no JSON is malformed, and stops nothing."""
    valkey = Valkey(tmp_path / "valkey").start()
    try:
        await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket))
        attachments = with_file()["payload"]["attachments"]
        entries = [fields(number, payload={"attachments": attachments}) for number in range(2)]
        entries[0]["payload_json"] = entries[0]["payload_json"][:-1]
        add(valkey, *entries)
        await query(dsn, "SELECT mail.enqueue($1::text::jsonb)", json.dumps(with_file()))
        await drained(valkey)
        await counted(dsn, 2)
        assert [record["failure_code"] for record in await malformed(dsn)] == ["invalid_json"]
    finally:
        valkey.stop()
