"""Erasure over the whole service: of recipients, senders and whom mail names, nothing is left in a full dump; sealed, little was."""

import asyncio
import json

import asyncpg
import pytest
from http_kit import DELIVERIES, command
from send_kit import calling, mail, new_key
from test_bounces import hop  # noqa: F401 - a fixture

from dumps import dump_of_all, dump_of_tables, found_in
from mailkeep.store.sealing import new_key as new_payload_key

ERASURES = "/api/v1/internal/erasures"
WRITER, GONE, FULL, REPLY, FIRST, BAD = (
    f"canary-{who}@example.org" for who in ("writer", "gone", "full", "reply", "first", "bad")
)
ALL = (WRITER, GONE, FULL, REPLY, FIRST, BAD)
WHY = {"reason": "request 4711", "actor": "eve"}
PATIENCE_S = 60


@pytest.fixture(params=["clear", "sealed"])
async def world(request, serve, hop, dsn, tmp_path):  # noqa: F811 - the fixture
    """Leave traces of each of `ALL`: sent from, refused, given up, replied to, resent beside, malformed; return the calls."""
    environ = {}
    if request.param == "sealed":
        (tmp_path / "keys").write_text(new_payload_key("k1"))
        environ["MAIL_PAYLOAD_KEYS_FILE"] = str(tmp_path / "keys")
    served = await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example.org",
        MAIL_SEND_HTTP_ADDR="127.0.0.1:0",
        MAIL_RETRY_LADDER_RELAY="100ms",
        MAIL_RETRY_LADDER_TRANSACTIONAL="100ms",
        **environ,
    )
    hop.replies = {
        GONE: f"550 5.1.1 <{GONE}> no such user",
        FULL: f"451 4.3.0 <{FULL}> later",
        "bo@example.net": "550 5.2.1 disabled",
    }
    token = (await new_key(dsn, WRITER, name=f"{WRITER} laptop")).token
    async with calling(served) as calls:
        calls.is_sealed = request.param == "sealed"
        sent = (await calls.post(token, mail(**{"from": WRITER, "to": [GONE, FULL]}), key=WRITER)).json()
        await served.settled(sent["delivery_id"], "dead_letter")
        payload = {"to": [FIRST, "bo@example.net"], "reply_to": [REPLY]}
        two = (await served.post(DELIVERIES, command(payload=payload), key=f"to-{FIRST}")).json()
        await served.settled(two["delivery_id"], "failed")
        again = (
            await served.post(f"{DELIVERIES}/{two['delivery_id']}/resend", {"reason": f"{REPLY} asked"})
        ).json()
        await served.settled(again["delivery_id"], "failed", "suppressed")
        connection = await asyncpg.connect(dsn)
        try:
            bad = {"source": BAD, "payload_mode": "rendered", "payload": {BAD: [BAD]}}
            await connection.execute("SELECT mail.enqueue($1)", json.dumps(bad))
        finally:
            await connection.close()
        await calls.served.settled(await bounced(served), "sent")
        async with asyncio.timeout(PATIENCE_S):
            while not (await served.get("/api/v1/internal/malformed-commands")).json()["malformed_commands"]:
                await asyncio.sleep(0.02)
        yield calls


async def bounced(served):
    """Wait for both bounces, of the refusal and of giving up, and return the later one's id."""
    async with asyncio.timeout(PATIENCE_S):
        while len(found := (await served.get(DELIVERIES, source="bounce")).json()["deliveries"]) < 2:
            await asyncio.sleep(0.02)
    for each in found:
        await served.settled(each["delivery_id"], "sent")
    return found[0]["delivery_id"]


async def test_nothing_of_an_erased_address_is_in_a_dump(world, dsn):
    """Whoever is erased, over HTTP, is in no table in any form; sealed, content had nothing of anybody before that either."""
    content = dump_of_tables(
        dsn, "payloads", "attempts", "dead_letters", "bounces_owed", "events", "enqueued", "webhook"
    )
    named = found_in(content, ALL)
    assert named == (set() if world.is_sealed else {WRITER, GONE, FULL, REPLY, FIRST})
    # A key is its caller's own, and shown with the delivery.
    assert found_in(dump_of_tables(dsn, "deliveries"), ALL) == {FIRST}
    whole = found_in(dump_of_all(dsn), ALL)
    assert {
        WRITER,
        GONE,
        FIRST,
        REPLY,
        BAD,
    } <= whole  # a key's owner, a suppression, a key, a note, a bad field
    for address in ALL:
        done = await world.served.post(ERASURES, {"recipient": address, "cancel": True, **WHY})
        assert done.status_code == 200, done.text
        left = done.json()["left"]
        assert set(left.values()) == {0}, (address, left)
        assert address not in found_in(dump_of_all(dsn), ALL), address
    assert found_in(dump_of_all(dsn), ALL) == set()


async def test_others_are_still_known_by_their_address(world, store):
    """Who is erased as a sender or beside others takes the mail with it, and no other recipient's suppression or record."""
    for address in (WRITER, FIRST):
        assert (
            await world.served.post(ERASURES, {"recipient": address, "cancel": True, **WHY})
        ).status_code == 200
    listed = (await world.served.get("/api/v1/internal/suppressions")).json()["suppressions"]
    assert GONE in {each["address"] for each in listed}
    (key,) = await store.fetch("read_api_keys", True, 10)
    assert (key["senders"], key["revoked_by"], WRITER in key["name"]) == (
        ["erased@erased.invalid"],
        "eve",
        False,
    )
