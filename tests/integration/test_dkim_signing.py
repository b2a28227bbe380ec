"""Signatures and headers of mail as it reaches the next hop, by every way in, judged by a second library."""

import asyncio
import base64
import json
import time
from datetime import UTC, datetime
from email import message_from_bytes
from random import randbytes
from types import SimpleNamespace
from uuid import UUID

import asyncpg
import dkim
import pytest
from http_kit import BATCH, DELIVERIES, LOGIN_CODES, SETTLE_S, command, login_code

from mailkeep.aside import LARGE_BYTES
from mailkeep.core.delivery import DeliveryClass
from mailkeep.core.ids import new_id
from mailkeep.dkim.keys import Keyring, as_pem, new_private_key, record_name, record_value
from mailkeep.dkim.signature import Algorithm, SigningKey
from mailkeep.intake.signing import Signer
from mailkeep.wiring import StartError

DOMAIN = "mailkeep.example"
KEYS = [SigningKey(DOMAIN, f"s{number}", new_private_key(kind)) for number, kind in enumerate(Algorithm)]
DNS = {f"{record_name(key)}.".encode(): record_value(key).encode() for key in KEYS}
URL = "https://news.example.org/u?t=Zm9v"
ONE_CLICK = "List-Unsubscribe=One-Click"


@pytest.fixture
def keys_file(tmp_path):
    """A keys file with an RSA and an Ed25519 key of the sender's domain."""
    for key in KEYS:
        (tmp_path / f"{key.selector}.pem").write_bytes(as_pem(key.private_key))
    tables = [
        f'[[key]]\ndomain = "{DOMAIN}"\nselector = "{key.selector}"\nkey_file = "{key.selector}.pem"\n'
        for key in KEYS
    ]
    path = tmp_path / "keys.toml"
    path.write_text("\n".join(tables))
    return path


@pytest.fixture
async def signing(serve, next_hop, keys_file):
    """Run a service that signs and hands mail to `next_hop`."""
    return await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL=f"mail@{DOMAIN}",
        MAIL_DKIM_KEYS_FILE=str(keys_file),
    )


def verdicts(octets):
    """Return what dkimpy says of each signature, and the headers that both cover."""
    count = octets.count(b"DKIM-Signature:")
    verifiers = [dkim.DKIM(octets) for _ in range(count)]
    answers = [
        verifier.verify(idx=number, dnsfunc=lambda name, timeout=5: DNS.get(name))
        for number, verifier in enumerate(verifiers)
    ]
    covered = [{name.decode().lower() for name, _ in verifier.signed_headers} for verifier in verifiers]
    return answers, set.intersection(*covered) if covered else set()


async def arrived(next_hop, count=1):
    """Wait for `count` messages and return them."""
    async with asyncio.timeout(SETTLE_S):
        while len(next_hop.messages) < count:
            await asyncio.sleep(0.02)
    return [message.content for message in next_hop.messages]


async def test_what_is_sent_is_what_is_stored_and_verifies(signing, next_hop, dsn):
    """I9: signed once, before it is stored; the copy in the table, for later attempts, is the one that left."""
    answer = await signing.post(DELIVERIES, command(payload={"html": "<p>é</p>"}))
    (octets,) = await arrived(next_hop)
    assert verdicts(octets)[0] == [True, True]
    connection = await asyncpg.connect(dsn)
    stored = await connection.fetchval(
        "SELECT message FROM mail.payloads WHERE delivery_id = $1", UUID(answer.json()["delivery_id"])
    )
    await connection.close()
    assert stored == octets


async def test_every_way_in_signs(signing, next_hop, dsn):
    """A login code, a batch, and a command from SQL leave signed."""
    await signing.post(LOGIN_CODES, login_code(), key="k")
    await signing.post(BATCH, {"commands": [command(), command(source="notification")]})
    connection = await asyncpg.connect(dsn)
    await connection.execute("SELECT mail.enqueue($1::jsonb)", json.dumps(command(source="sql")))
    await connection.close()
    messages = await arrived(next_hop, 4)
    assert [verdicts(octets)[0] for octets in messages] == [[True, True]] * 4


async def test_large_mail_is_signed(signing, next_hop):
    """Mail that is signed aside carries the same signatures, and a file as it was given."""
    file = {"filename": "big.bin", "content": base64.b64encode(randbytes(2 * LARGE_BYTES)).decode()}
    await signing.post(DELIVERIES, command(payload={"attachments": [file]}))
    (octets,) = await arrived(next_hop)
    assert verdicts(octets)[0] == [True, True]


@pytest.mark.parametrize("mode", ["rendered", "template"])
async def test_one_click_unsubscribe_is_signed(signing, next_hop, mode):
    """RFC 8058: both headers stand as given, in each mode, under both signatures."""
    template = {
        "payload_mode": "template",
        "payload": {
            "to": ["ann@example.org"],
            "template_id": "welcome",
            "locale": "en",
            "variables": {"product": "Notes", "start_url": "https://example.com/start"},
        },
    }
    asked = command() if mode == "rendered" else template
    asked["payload"]["list_unsubscribe"] = URL
    answer = await signing.post(DELIVERIES, asked)
    assert answer.status_code == 202
    (octets,) = await arrived(next_hop)
    message = message_from_bytes(octets)
    assert (message["List-Unsubscribe"], message["List-Unsubscribe-Post"]) == (f"<{URL}>", ONE_CLICK)
    answers, covered = verdicts(octets)
    assert answers == [True, True]
    assert {"from", "subject", "list-unsubscribe", "list-unsubscribe-post", "auto-submitted"} <= covered


@pytest.mark.parametrize(
    ("delivery_class", "said"),
    [("auth", "auto-generated"), ("transactional", "auto-generated"), ("relay", None)],
)
async def test_auto_submitted_is_said_by_class(sending, next_hop, delivery_class, said):
    """RFC 3834: what programs write says so, what people write does not; without keys nothing is signed."""
    await sending.post(DELIVERIES, command(**{"class": delivery_class}))
    (octets,) = await arrived(next_hop)
    message = message_from_bytes(octets)
    assert message["Auto-Submitted"] == said
    assert message["List-Unsubscribe"] is message["DKIM-Signature"] is None


async def test_a_start_needs_a_key_for_the_sender(serve, keys_file):
    """Keys of other domains only would leave all mail unsigned: the service does not start."""
    with pytest.raises(StartError, match=r"no key for example\.org"):
        await serve(MAIL_SMTP_FROM_EMAIL="mail@example.org", MAIL_DKIM_KEYS_FILE=str(keys_file))


def _new(delivery_class):
    message = b"From: mail@mailkeep.example\r\nSubject: x\r\n\r\nText\r\n"
    return SimpleNamespace(
        id=new_id(time.time()),
        sender=f"mail@{DOMAIN}",
        author_domain=None,
        message=message,
        delivery_class=delivery_class,
    )


async def test_a_login_code_does_not_wait_behind_a_flood():
    """While hundreds of messages wait for their RSA signatures, a login code gets its own."""
    signer = Signer(Keyring(KEYS[:1]), time.time)
    flood = [asyncio.create_task(signer.sign(_new(DeliveryClass.TRANSACTIONAL))) for _ in range(2000)]
    await asyncio.sleep(0)
    code = _new(DeliveryClass.AUTH)
    await signer.sign(code)
    assert code.message.startswith(b"DKIM-Signature: ")
    assert sum(signing.done() for signing in flood) < len(flood) / 2
    for waiting in flood:
        waiting.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    signer.close()


async def test_keys_take_turns_while_the_service_runs():
    """The next key signs from its `not_before` on, without a restart; mail of another domain stays as it is."""
    clock = SimpleNamespace(now_s=1_800_000_000.0)
    old, other = (
        KEYS[0],
        SigningKey(DOMAIN, "next", KEYS[0].private_key, datetime.fromtimestamp(1_800_000_060, UTC)),
    )
    signer = Signer(Keyring([old, other]), lambda: clock.now_s)
    before, after, foreign = (_new(DeliveryClass.RELAY) for _ in range(3))
    foreign.sender = "mail@elsewhere.example"
    await signer.sign(before)
    clock.now_s += 60
    await signer.sign(after)
    await signer.sign(foreign)
    signer.close()
    assert b"s=s0;" in before.message
    assert b"s=next;" in after.message
    assert foreign.message.startswith(b"From:")
