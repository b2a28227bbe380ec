"""Malformed commands as operators meet them: listed over HTTP, shown and replayed on the command line."""

import asyncio
import json
import shutil
import tempfile
import time
from pathlib import Path
from uuid import UUID

import pytest
import uuid_utils
from http_kit import DELIVERIES, command
from stream_kit import PATIENCE_S, STREAM, Valkey, add, deliveries, drained, fields, malformed, query
from typer.testing import CliRunner

from mailkeep.cli import app
from mailkeep.cli import malformed as cli_malformed
from mailkeep.intake import sql
from mailkeep.intake.accept import Accept
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.malformed import MalformedCommands
from mailkeep.store.postgres import Store

MALFORMED = "/api/v1/internal/malformed-commands"
DAY_MS = 86_400_000
EXIT_FAILED, EXIT_USAGE = 1, 2


@pytest.fixture(scope="module")
def redis_of_module():
    """Run a server for the tests of this file."""
    folder = Path(tempfile.mkdtemp(prefix="mk-valkey-"))
    server = Valkey(folder).start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def valkey(redis_of_module):
    """Empty the server."""
    redis_of_module.do("FLUSHALL")
    return redis_of_module


@pytest.fixture
async def streaming(serve, valkey):
    """Run a service in stub mode that reads the stream."""
    return await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket))


@pytest.fixture
def run(dsn, log_lines, monkeypatch):
    """Return a function that runs `mailkeep malformed`; what the service logs beside it is gathered elsewhere."""
    monkeypatch.setattr(cli_malformed, "REPLAY_WAIT_S", PATIENCE_S)

    async def running(*arguments):
        environ = {"MAIL_POSTGRES_DSN": dsn}
        invoked = ["malformed", *map(str, arguments)]
        return await asyncio.to_thread(CliRunner().invoke, app, invoked, env=environ)

    return running


async def rejected(valkey, dsn, *entries):
    """Add entries that can't be taken and return the ids of their records in that order."""
    entry_ids = add(valkey, *entries)
    await drained(valkey)
    found = {record["entry_id"]: str(record["id"]) for record in await malformed(dsn)}
    return [found[entry_id] for entry_id in entry_ids]


def uuid7(age_ms):
    """Return a UUIDv7 made `age_ms` ago."""
    return str(uuid_utils.uuid7(nanoseconds=time.time_ns() - age_ms * 1_000_000))


# -- HTTP --------------------------------------------------------------------------------------------------------


async def test_the_list_has_filters_and_pages_and_no_content(streaming, valkey, dsn):
    """Code and source filter, pages follow by cursor, newest first; what the commands said is not told."""
    wrong = [
        fields(number, source=source, colour="red")
        for number, source in enumerate(("api", "notification", "api"))
    ]
    ids = []
    for entry in (*wrong, fields(9, payload={"to": ["secret-address"]})):
        ids += await rejected(valkey, dsn, entry)
        await asyncio.sleep(0.005)  # ids of one millisecond have no order
    whole = (await streaming.get(MALFORMED)).json()
    assert [record["id"] for record in whole["malformed_commands"]] == ids[::-1]
    assert whole["cursor"] is None
    newest = whole["malformed_commands"][0]
    assert (newest["failure_code"], newest["field"], newest["state"]) == (
        "invalid_address",
        "payload.to[0]",
        "rejected",
    )
    assert "secret" not in json.dumps(whole)
    for parameters, wanted in (
        ({"code": "unknown_field"}, ids[2::-1]),
        ({"source": "api"}, [ids[2], ids[0]]),
        ({"code": "unknown_field", "source": "notification"}, [ids[1]]),
        ({"code": "too_large"}, []),
    ):
        found = (await streaming.get(MALFORMED, **parameters)).json()["malformed_commands"]
        assert [record["id"] for record in found] == wanted, parameters
    first = (await streaming.get(MALFORMED, limit=3)).json()
    rest = (await streaming.get(MALFORMED, limit=3, cursor=first["cursor"])).json()
    pages = first["malformed_commands"] + rest["malformed_commands"]
    assert [record["id"] for record in pages] == ids[::-1]
    for parameters in ({"code": "nonsense"}, {"limit": 0}, {"cursor": "x"}, {"colour": "red"}):
        assert (await streaming.get(MALFORMED, **parameters)).status_code == 400, parameters


# -- list and show -----------------------------------------------------------------------------------------------


async def test_the_command_line_lists_and_shows(streaming, valkey, dsn, run):
    """A record is one line; `show` tells the rest, and the fields in clear only when asked for."""
    assert (await run("list")).stdout == "There are no malformed commands.\n"
    raw = {b"\xff\x1b[2J": b"\xfe", b"source": b"api", b"payload_json": b'{"to": ["ann@example.org"]}'}
    (record_id,) = await rejected(valkey, dsn, raw)
    listed = await run("list")
    assert listed.exit_code == 0
    assert record_id in listed.stdout
    assert "unknown_field" in listed.stdout
    assert listed.stdout.endswith("-- 1 malformed commands\n")
    assert (await run("list", "--code", "too_large")).stdout == "No malformed command matches.\n"
    assert [view["id"] for view in json.loads((await run("list", "--json")).stdout)] == [record_id]
    shown = await run("show", record_id)
    assert "unknown_field" in shown.stdout
    assert "ann@example.org" not in shown.stdout
    raw_too = await run("show", record_id, "--raw")
    assert "ann@example.org" in raw_too.stdout
    assert "\x1b" not in raw_too.stdout
    assert (
        json.loads((await run("show", record_id, "--raw", "--json")).stdout)["fields"]["\\xff\x1b[2J"]
        == "\\xfe"
    )
    missing = await run("show", UUID(int=7))
    assert (missing.exit_code, missing.stdout) == (EXIT_FAILED, "")


# -- replay ------------------------------------------------------------------------------------------------------


async def test_a_repaired_command_is_replayed_as_itself(streaming, valkey, dsn, run):
    """The repaired command keeps source, key and delivery id, and its record says what it became; it goes once only."""
    entry = fields(1, payload={"to": ["nobody"]})
    (record_id,) = await rejected(valkey, dsn, entry)
    payload = json.dumps(json.loads(entry["payload_json"]) | {"to": ["ann@example.org"]})
    ran = await run("replay", record_id, "--set", f"payload_json={payload}")
    assert ran.exit_code == 0, ran.output
    assert ran.stdout == f"{record_id} replayed as delivery {entry['delivery_id']}\n"
    delivery = (await streaming.get(f"{DELIVERIES}/{entry['delivery_id']}")).json()
    assert delivery["source"] == "notification"
    assert await deliveries(dsn) == {"order-1": entry["delivery_id"]}
    (record,) = await malformed(dsn)
    assert str(record["replayed_as"]) == entry["delivery_id"]
    assert (await streaming.get(MALFORMED)).json()["malformed_commands"][0]["state"] == "replayed"
    again = await run("replay", record_id)
    assert again.exit_code == EXIT_FAILED
    assert entry["delivery_id"] in again.stderr
    assert len(await deliveries(dsn)) == 1


async def test_a_field_can_be_added_and_taken_away(streaming, valkey, dsn, run):
    """--set adds a missing field and, without a value, takes a wrong one away."""
    lacking, surplus = await rejected(valkey, dsn, fields(1, idempotency_key=None), fields(2, colour="red"))
    assert (await run("replay", lacking, "--set", "idempotency_key=order-1")).exit_code == 0
    assert (await run("replay", surplus, "--set", "colour=")).exit_code == 0
    assert set(await deliveries(dsn)) == {"order-1", "order-2"}


async def test_a_command_that_is_still_bad_stays_one_record(streaming, valkey, dsn, run):
    """A replay that is refused again says why, leaves the record and its raw fields as they were, and can be repeated."""
    (record_id,) = await rejected(valkey, dsn, fields(1, colour="red"))
    before = (await malformed(dsn))[0]
    for repair in ("payload_mode=raw", "payload_json={"):
        ran = await run("replay", record_id, "--set", "colour=", "--set", repair)
        assert ran.exit_code == EXIT_FAILED
        assert "refused again" in ran.stdout
    (record,) = await malformed(dsn)
    assert record["replay_refusal"].startswith("invalid_json payload_json: ")
    changed = {"replayed_at", "replay_refusal"}
    assert {name: value for name, value in record.items() if name not in changed} == {
        name: value for name, value in before.items() if name not in changed
    }
    assert (await run("replay", record_id, "--set", "colour=")).exit_code == 0


async def test_a_cut_record_cannot_be_replayed(streaming, valkey, dsn, run):
    """What was too large to be kept whole says so and is not even tried."""
    (record_id,) = await rejected(valkey, dsn, fields(1, payload_json="x" * 300_000))
    ran = await run("replay", record_id)
    assert ran.exit_code == EXIT_FAILED
    assert "too large to be kept whole" in ran.stderr
    assert (await malformed(dsn))[0]["replayed_at"] is None


async def test_all_of_a_code_are_replayed(streaming, valkey, dsn, run):
    """--all replays every record of a code that can be, and no other."""
    reserved = [fields(number + 10, payload={"to": ["ann@example.test"]}) for number in range(6)]
    await rejected(valkey, dsn, *reserved, fields(20, colour="red"))
    payload = json.dumps({"to": ["ann@example.org"], "subject": "Hello", "text": "It works."})
    ran = await run("replay", "--all", "--code", "reserved_domain", "--set", f"payload_json={payload}")
    assert ran.exit_code == 0, ran.output
    assert len(ran.stdout.splitlines()) == 6
    assert set(await deliveries(dsn)) == {f"order-{number + 10}" for number in range(6)}
    assert [record["failure_code"] for record in await malformed(dsn) if not record["replayed_as"]] == [
        "unknown_field"
    ]
    assert (await run("replay", "--all", "--code", "reserved_domain")).stdout == ""


WRONG_USES = [
    [],
    ["--all"],
    ["--code", "too_large"],
    [str(UUID(int=7)), "--all", "--code", "too_large"],
    [str(UUID(int=7)), "--set", "nothing"],
    [str(UUID(int=7)), "--set", "=x"],
    ["--all", "--code", "nonsense"],
]


async def test_a_wrong_use_is_told(run):
    """What is neither one record nor all of a code, or no repair, is a fault of usage."""
    for arguments in WRONG_USES:
        assert (await run("replay", *arguments)).exit_code == EXIT_USAGE, arguments


async def test_a_replay_waits_for_a_service(dsn, run, serve, valkey, monkeypatch):
    """Without a running service the wish is kept and said to wait; the next service grants it."""
    monkeypatch.setattr(cli_malformed, "REPLAY_WAIT_S", 0.5)
    served = await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket))
    (record_id,) = await rejected(valkey, dsn, fields(1, colour="red"))
    await served.service.stop()
    ran = await run("replay", record_id, "--set", "colour=")
    assert ran.exit_code == EXIT_FAILED
    assert "waits for a running service" in ran.stdout
    twice = await run("replay", record_id)
    assert "waits for a running service" in twice.stderr
    await serve()
    while not (await malformed(dsn))[0]["replayed_as"]:
        await asyncio.sleep(0.05)
    assert set(await deliveries(dsn)) == {"order-1"}


async def test_an_old_command_is_replayed_under_a_new_id(streaming, valkey, dsn, run):
    """A record whose delivery id is too old to tell whether it was sent goes under a new one, once; the record tells which."""
    (record_id,) = await rejected(valkey, dsn, entry := fields(1, colour="red"))
    old = uuid7(30 * DAY_MS)
    ran = await run("replay", record_id, "--set", "colour=", "--set", f"delivery_id={old}")
    assert ran.exit_code == 0, ran.output
    ((key, delivery_id),) = (await deliveries(dsn)).items()
    assert key == "order-1"
    assert delivery_id not in {old, entry["delivery_id"]}
    assert str((await malformed(dsn))[0]["replayed_as"]) == delivery_id


async def test_a_command_of_sql_is_replayed_under_the_answered_id(served, dsn, run):
    """What `mail.enqueue` answered is the delivery's id after the repair too."""
    asked = command(payload={"to": ["nobody"]})
    ((answered,),) = await query(dsn, "SELECT mail.enqueue($1::text::jsonb)", json.dumps(asked))
    while not (found := await malformed(dsn)):
        await asyncio.sleep(0.05)
    payload = json.dumps(asked["payload"] | {"to": ["ann@example.org"]})
    ran = await run("replay", found[0]["id"], "--set", f"payload_json={payload}")
    assert ran.exit_code == 0, ran.output
    assert set((await deliveries(dsn)).values()) == {str(answered)}


async def test_a_replay_taken_twice_is_one_delivery(serve, valkey, dsn, run, monkeypatch):
    """A replica that loses PostgreSQL between the commit and the note leaves nothing that doubles."""
    monkeypatch.setattr(sql, "TAKEN_FOR_S", 0.3)
    left = [2]
    note = MalformedCommands.note_replay

    async def forgetful(self, *arguments):
        if left[0]:
            left[0] -= 1
            raise StoreUnavailableError("gone", in_doubt=True)
        await note(self, *arguments)

    monkeypatch.setattr(MalformedCommands, "note_replay", forgetful)
    await serve(MAIL_REDIS_MASTER_ADDR=str(valkey.socket))
    (record_id,) = await rejected(valkey, dsn, entry := fields(1, colour="red"))
    assert (await run("replay", record_id, "--set", "colour=")).exit_code == 0
    assert left == [0]
    assert await deliveries(dsn) == {"order-1": entry["delivery_id"]}


# -- faults of ours ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("streaming")
async def test_a_command_that_trips_us_is_set_aside(valkey, dsn, run, monkeypatch, log_lines):
    """An exception of ours while a command is prepared makes it malformed, its neighbours go on; it can be replayed later."""
    prepare = Accept.prepare

    def tripping(self, asked, **options):
        if options["key"] == "order-2":
            raise KeyError("secret-content")
        return prepare(self, asked, **options)

    with monkeypatch.context() as broken:
        broken.setattr(Accept, "prepare", tripping)
        (_, record_id, _) = [*add(valkey, *(fields(number) for number in (1, 2, 3)))]
        await drained(valkey)
    assert set(await deliveries(dsn)) == {"order-1", "order-3"}
    (record,) = await malformed(dsn)
    assert (record["entry_id"], record["message"]) == (record_id, "met a fault of Mailkeep: KeyError")
    (line,) = [line for line in log_lines if line["event"] == "command met a fault"]
    assert (line["log_level"], line["error"]) == ("error", "KeyError")
    assert "secret-content" not in str(log_lines)
    assert (await run("replay", record["id"])).exit_code == 0
    assert set(await deliveries(dsn)) == {"order-1", "order-2", "order-3"}


async def test_a_commit_that_trips_us_loses_nothing(streaming, valkey, dsn, monkeypatch, log_lines):
    """An exception of ours in the commit leaves the entries pending and in the inbox; they are taken when it is mended."""
    accept = Store.accept

    async def tripping(self, *_arguments):
        raise TypeError("secret-content")

    with monkeypatch.context() as broken:
        broken.setattr(Store, "accept", tripping)
        add(valkey, fields(1))
        await query(dsn, "SELECT mail.enqueue($1::text::jsonb)", json.dumps(command(idempotency_key="k")))
        for name in ("command consumer", "enqueued consumer"):
            while not any(line["event"] == f"{name} met a fault; trying again" for line in log_lines):
                await asyncio.sleep(0.05)
        broken.setattr(sql, "TAKEN_FOR_S", 0.3)
        broken.setattr(Store, "accept", accept)
        await drained(valkey)
        while set(await deliveries(dsn)) != {"order-1", "k"}:
            await asyncio.sleep(0.05)
    assert await malformed(dsn) == []
    assert "secret-content" not in str(log_lines)


async def test_a_record_outlives_its_stream(streaming, valkey, dsn):
    """An entry that is delivered to consumers again and again has one record."""
    (record_id,) = await rejected(valkey, dsn, fields(1, colour="red"))
    for _ in range(2):
        valkey.do("XGROUP", "DESTROY", STREAM, "mailkeep")
        await drained(valkey)
    assert [str(record["id"]) for record in await malformed(dsn)] == [record_id]
