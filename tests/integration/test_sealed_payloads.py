"""Payloads sealed at rest: unreadable in the tables, sent and shown as ever, rotated, and never lost with a key."""

import asyncio
import os

import pytest
from http_kit import DELIVERIES, command
from queue_kit import ANY, MESSAGE, accepted, claim_one, delivery, finished, payload, replica, rows, status
from typer.testing import CliRunner

from mailkeep.cli import app
from mailkeep.core.command import CommandError, FailureCode
from mailkeep.core.delivery import DeliveryStatus
from mailkeep.core.malformed import Intake, malformed, raw_fields
from mailkeep.settings import Settings
from mailkeep.store.changes import OperatorChanges
from mailkeep.store.malformed import MalformedCommands
from mailkeep.store.postgres import INLINE_MESSAGE_BYTES, Store
from mailkeep.store.reads import FIRST_ID, QueueReads
from mailkeep.store.rekey import Rekey
from mailkeep.store.sealing import PayloadKeys, PayloadKeysError, SealedError, new_key, sealed_by
from mailkeep.wiring import Service, StartError

BY = {"actor": "ann", "reason": "because"}
OLD, NEW = new_key("old"), new_key("new")


@pytest.fixture
def keys(tmp_path):
    """Yield a function that makes a keys file of lines and returns its path."""

    def write(*lines):
        path = tmp_path / f"keys-{len(list(tmp_path.iterdir()))}"
        path.write_text("\n".join(lines))
        return path

    return write


@pytest.fixture
async def opened(dsn, keys):
    """Yield a function that opens a store with keys."""
    stores = []

    async def open_with(*lines):
        known = PayloadKeys.load(keys(*lines)) if lines else PayloadKeys()
        stores.append(await Store.open(dsn, pool_size=2, payload_keys=known))
        return stores[-1]

    yield open_with
    for store in stores:
        await store.close()


async def test_nothing_of_a_sealed_payload_can_be_read(opened):
    """Message and addresses are unreadable in the table, and the claim has both; so has what operators read."""
    store = await opened(OLD)
    claim = await claim_one(store, recipients=("ann@example.org", "bob@example.org"))
    stored = await payload(store, claim.id)
    assert sealed_by(stored["message"]) == "old"
    assert b"hello" not in stored["message"]
    assert len(stored["recipients"]) == 2
    assert not any("ann" in text or "@" in text for text in stored["recipients"])
    assert (claim.message, claim.recipients) == (MESSAGE, ("ann@example.org", "bob@example.org"))
    assert (await QueueReads(store).delivery(claim.id)).recipients == claim.recipients


async def test_a_large_message_is_loaded_and_opened(opened):
    """A message that does not come with its claim is opened when it is loaded."""
    store = await opened(OLD)
    large = MESSAGE + bytes(INLINE_MESSAGE_BYTES)
    claim = await claim_one(store, message=large)
    assert (claim.message, claim.unopened) == (None, None)
    assert await store.load_message(claim.id) == large


async def test_a_resend_is_sealed_for_its_own_delivery(opened):
    """The new delivery opens by its own id; the bytes are the parent's."""
    store = await opened(OLD)
    claim = await claim_one(store)
    await store.finish([finished(claim)])
    made = await OperatorChanges(store).resend(claim.id, claim.recipients, **BY)
    (again,) = await store.claim_due(await replica(store), ANY, 10)
    assert (again.id, again.message, again.recipients) == (made.delivery_id, MESSAGE, claim.recipients)
    await rows(
        store,
        "UPDATE mail.payloads SET message = (SELECT message FROM mail.payloads WHERE delivery_id = $1)",
        claim.id,
    )
    with pytest.raises(SealedError):
        await store.load_message(made.delivery_id)


async def test_raw_fields_of_malformed_commands_are_sealed(opened):
    """What a malformed command said is sealed as mail is."""
    store = await opened(OLD)
    record = malformed(
        Intake.SQL, "1", {b"to": b"ann@example.org"}, CommandError(FailureCode.INVALID_FIELD, "to", "is bad")
    )
    records = MalformedCommands(store)
    await records.keep([record], 1.8e9)
    (raw,) = await rows(store, "SELECT raw FROM mail.malformed_commands")
    assert b"ann" not in raw["raw"]
    (shown,) = await records.page()
    assert raw_fields(shown.record.raw) == {b"to": b"ann@example.org"}
    (blind,) = await MalformedCommands(await opened()).page()
    assert raw_fields(blind.record.raw) == {}


async def test_rotation(opened):
    """What was not sealed and what an old key sealed is sealed by the newest; then the old key may go, and not before."""
    plain = await opened()
    ids = [await accepted(plain) for _ in range(3)]
    old = await opened(OLD)
    await old.use_payload_keys()
    ids += [await accepted(old) for _ in range(3)]
    with pytest.raises(PayloadKeysError, match="old"):
        await (await opened(NEW)).use_payload_keys()
    with pytest.raises(PayloadKeysError, match="another key"):
        await (await opened(new_key("old"))).use_payload_keys()
    both = await opened(NEW, OLD)
    stored = {use.name: use.stored for use in await Rekey(both).uses()}
    assert stored == {"new": 0, "old": 3, None: 3}
    done = await Rekey(both).run()
    assert (done.sealed, done.unopened, done.forgotten) == (6, 0, ("old",))
    new = await opened(NEW)
    await new.use_payload_keys()
    claims = await new.claim_due(await replica(new), ANY, 100)
    assert {claim.id: (claim.message, claim.recipients) for claim in claims} == dict.fromkeys(
        ids, (MESSAGE, ("ann@example.org",))
    )
    assert (await Rekey(both).run()).sealed == 0


async def test_what_changes_meanwhile_is_left_alone(opened):
    """A payload that was erased or replaced while it was sealed anew is not put back."""
    old = await opened(OLD)
    kept, gone, changed = await accepted(old), await accepted(old), await accepted(old)
    both = await opened(NEW, OLD)
    rekey = Rekey(both)
    read = await both.fetch("read_to_rekey", FIRST_ID, 10, b"new", 10**9)
    renewed = [rekey._renewed(row) for row in read]
    await rows(old, "DELETE FROM mail.payloads WHERE delivery_id = $1", gone)
    await rows(old, "UPDATE mail.payloads SET message = 'newer' WHERE delivery_id = $1", changed)
    await both.fetch("rekey", *[[row[index] for row in renewed] for index in range(7)])
    assert sealed_by((await payload(old, kept))["message"]) == "new"
    assert await payload(old, gone) is None
    assert (await payload(old, changed))["message"] == b"newer"


async def tried(served, delivery_id):
    """Return the rules that the attempts of a delivery met."""
    answer = await served.get(f"{DELIVERIES}/{delivery_id}/attempts")
    return [attempt["rule"] for attempt in answer.json()["attempts"]]


async def test_mail_of_a_missing_key_waits_and_is_sent_when_the_key_is_back(opened, serve, next_hop, keys):
    """A replica that runs without a key that another seals by leaves that mail waiting; with the key it is sent."""
    smtp = {
        "MAIL_SMTP_MODE": "smtp",
        "MAIL_SMTP_ADDR": next_hop.address,
        "MAIL_SMTP_FROM_EMAIL": "mail@mailkeep.example",
    }
    lacking = await serve(MAIL_PAYLOAD_KEYS_FILE=str(keys(OLD)), **smtp)
    store = await opened(NEW, OLD)
    delivery_id = await accepted(store)
    await store.notify_due()
    async with asyncio.timeout(60):
        while "payload_unopened" not in await tried(lacking, delivery_id):
            await asyncio.sleep(0.05)
    assert await status(store, delivery_id) == "rendered"
    assert next_hop.messages == []
    await lacking.service.stop()
    having = await serve(MAIL_PAYLOAD_KEYS_FILE=str(keys(NEW, OLD)), **smtp)
    assert (await having.post("/api/v1/internal/queue/flush", {"all": True})).status_code == 200
    await having.settled(str(delivery_id), "sent")
    assert [envelope.content for envelope in next_hop.messages] == [MESSAGE]


async def test_a_start_without_a_key_that_is_needed_is_refused(dsn, serve, keys):
    """Once a key sealed something a service without it says so and does not start."""
    served = await serve(MAIL_PAYLOAD_KEYS_FILE=str(keys(OLD)))
    assert (await served.post(DELIVERIES, command())).status_code == 202
    for lines in ((), (NEW,), ("nonsense",)):
        environ = {"MAIL_PAYLOAD_KEYS_FILE": str(keys(*lines))} if lines else {}
        settings = Settings.load(
            {"MAIL_POSTGRES_DSN": dsn, "MAIL_INTERNAL_HTTP_ADDR": "127.0.0.1:0", **environ}
        )
        with pytest.raises(StartError, match="MAIL_PAYLOAD_KEYS_FILE") as caught:
            await Service.start(settings)
        assert not caught.value.unavailable


async def test_the_command_line_shows_and_rotates_keys(dsn, opened, keys, monkeypatch):
    """`new-key` prints a line that can be loaded, `keys` says which is needed, `rekey` frees the old one."""
    for name in [name for name in os.environ if name.startswith("MAIL_")]:
        monkeypatch.delenv(name)
    store = await opened(OLD)
    await store.use_payload_keys()
    await store.accept(await replica(store), [await delivery(store)])
    line = CliRunner().invoke(app, ["payloads", "new-key", "2026-11"]).output.strip()
    environ = {"MAIL_POSTGRES_DSN": dsn, "MAIL_PAYLOAD_KEYS_FILE": str(keys(line, OLD))}

    async def run(*arguments, **more):
        return await asyncio.to_thread(CliRunner().invoke, app, ["payloads", *arguments], env=environ | more)

    shown = await run("keys")
    assert [line.split() for line in shown.output.splitlines()[1:]] == [
        ["2026-11", "0", "seals", "new", "mail"],
        ["old", "1", "needed"],
    ]
    done = await run("rekey")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "1 sealed anew",
        "the key old seals nothing any more and may leave the file",
    ]
    assert (await run("rekey", MAIL_PAYLOAD_KEYS_FILE="")).exit_code == 78
    assert (await run("new-key", "A B")).exit_code == 1


async def test_a_sensitive_payload_that_is_sealed_is_erased_at_the_end_too(opened):
    """Sealing changes nothing about erasure."""
    store = await opened(OLD)
    claim = await claim_one(store, sensitive=True)
    assert await store.finish([finished(claim)]) == {claim.id: DeliveryStatus.SENT}
    assert await payload(store, claim.id) is None
    assert await status(store, claim.id) == "sent"
