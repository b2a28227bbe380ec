"""`mail.enqueue` inside callers' transactions: the mail exists exactly if they commit, once, under the id that was answered."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest
import uuid_utils
from http_kit import DELIVERIES, command
from stream_kit import PATIENCE_S, counted, deliveries, malformed, query

from mailkeep.intake import sql
from mailkeep.store.errors import StoreUnavailableError
from mailkeep.store.listener import NotificationListener
from mailkeep.store.postgres import Store

PROMISED_S = 1.0
NEVER_S = 3600.0
ENQUEUE = "SELECT mail.enqueue($1::text::jsonb)"


def enqueueable(number=0, **changes):
    """Return a command that can be taken, changed."""
    return command(**({"payload": {"to": [f"ann{number}@example.org"]}} | changes))


async def enqueue(connection, asked):
    """Enqueue a command, text or object, and return the id that is answered."""
    text = asked if isinstance(asked, str) else json.dumps(asked)
    return await connection.fetchval(ENQUEUE, text)


@asynccontextmanager
async def connected(dsn):
    """Connect."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def caller(dsn):
    """Yield the DSN of a role that may do nothing but call the function."""
    role = f"app_{uuid4().hex[:12]}"
    for statement in (
        f"CREATE ROLE {role} LOGIN",
        f"GRANT USAGE ON SCHEMA mail TO {role}",
        f"GRANT EXECUTE ON FUNCTION mail.enqueue(jsonb) TO {role}",
    ):
        await query(dsn, statement)
    yield urlsplit(dsn)._replace(netloc=f"{role}@").geturl()
    await query(dsn, f"DROP OWNED BY {role}")
    await query(dsn, f"DROP ROLE {role}")


@pytest.fixture
async def client(caller):
    """Yield a connection of that role."""
    async with connected(caller) as connection:
        yield connection


async def inbox(dsn):
    """Return how many commands wait to be taken."""
    return (await query(dsn, "SELECT count(*) FROM mail.enqueued"))[0][0]


async def taken(dsn):
    """Wait until the inbox is empty."""
    deadline_s = time.monotonic() + PATIENCE_S
    while await inbox(dsn):
        assert time.monotonic() < deadline_s, "waited in vain until the inbox is taken"
        await asyncio.sleep(0.05)


# -- transactions and roles --------------------------------------------------------------------------------------


async def test_a_role_needs_no_more_than_its_two_grants(served, dsn, client):
    """USAGE and EXECUTE are enough to enqueue, and give no way to read or change anything of the queue."""
    delivery_id = await enqueue(client, enqueueable())
    await counted(dsn, 1)
    assert (await served.get(f"{DELIVERIES}/{delivery_id}")).json()["source"] == "sql"
    for statement in (
        "SELECT * FROM mail.enqueued",
        "DELETE FROM mail.enqueued",
        "SELECT * FROM mail.deliveries",
        "SELECT * FROM mail.deployment",
        "INSERT INTO mail.enqueued (command, size_bytes) VALUES ('{}', 1)",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await client.execute(statement)


async def test_without_the_grant_nobody_enqueues(dsn, caller, client):
    """EXECUTE is not given to everybody."""
    role = urlsplit(caller).username
    await query(dsn, f"REVOKE EXECUTE ON FUNCTION mail.enqueue(jsonb) FROM {role}")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await enqueue(client, enqueueable())


async def test_a_rollback_leaves_nothing_and_a_commit_one_delivery(served, dsn, client):
    """What is rolled back, wholly or to a savepoint, never was; what commits is taken under the answered id."""
    transaction = client.transaction()
    await transaction.start()
    await enqueue(client, enqueueable(1))
    await transaction.rollback()
    async with client.transaction():
        kept = await enqueue(client, enqueueable(2))
        savepoint = client.transaction()
        await savepoint.start()
        await enqueue(client, enqueueable(3))
        await savepoint.rollback()
        await asyncio.sleep(1.5)
        assert await deliveries(dsn) == {}
    await counted(dsn, 1)
    assert set((await deliveries(dsn)).values()) == {str(kept)}
    assert await inbox(dsn) == 0


async def test_a_commit_is_heard_of(serve, dsn, client, monkeypatch):
    """A notification alone makes a committed command a delivery, at once or after a quiet time."""
    monkeypatch.setattr(sql, "IDLE_S", NEVER_S)
    await serve()
    for number in (1, 2):
        await enqueue(client, enqueueable(number))
        await counted(dsn, number)
        await taken(dsn)


async def test_a_lost_notification_costs_a_second_at_most(serve, dsn, client, monkeypatch):
    """Where no notification arrives (PgBouncer, a broken connection) the inbox is looked at all the same."""
    assert sql.IDLE_S <= PROMISED_S
    monkeypatch.setattr(NotificationListener, "_hear", lambda *_heard: None)
    await serve()
    for number in (1, 2):
        await enqueue(client, enqueueable(number))
        await counted(dsn, number)
        await taken(dsn)


async def test_thousands_in_one_transaction_are_shared_by_two_replicas(serve, dsn, client):
    """A large transaction becomes as many deliveries, none twice, although two replicas take from it."""
    for _ in range(2):
        await serve()
    ids = await client.fetch(
        "SELECT mail.enqueue(jsonb_build_object('payload_mode', 'rendered', 'payload', jsonb_build_object("
        "'to', jsonb_build_array('ann' || n || '@example.org'), 'subject', 's', 'text', 't'))) AS id"
        " FROM generate_series(1, 3000) n"
    )
    await counted(dsn, 3000)
    assert set((await deliveries(dsn)).values()) == {str(row["id"]) for row in ids}
    assert await malformed(dsn) == []


async def test_a_command_taken_twice_is_one_delivery(serve, dsn, client, monkeypatch):
    """When the row can't be removed after the commit it is taken again, and is the delivery it was, key or no key."""
    monkeypatch.setattr(sql, "TAKEN_FOR_S", 0.3)
    fetch, left = Store.fetch, [2]

    async def forgetful(self, name, *arguments):
        if name == "drop_enqueued" and left[0]:
            left[0] -= 1
            raise StoreUnavailableError("gone", in_doubt=True)
        return await fetch(self, name, *arguments)

    monkeypatch.setattr(Store, "fetch", forgetful)
    await serve()
    await enqueue(client, enqueueable(1))
    await enqueue(client, enqueueable(2, idempotency_key="k"))
    await taken(dsn)
    assert left == [0]
    await counted(dsn, 2)
    assert await malformed(dsn) == []


# -- ids and keys ------------------------------------------------------------------------------------------------


async def test_the_same_key_answers_the_same_id(served, dsn, client):
    """Before and after it is taken, in SQL or over HTTP before: the same key is the same delivery, and says so."""
    asked = enqueueable(1, idempotency_key="k")
    async with client.transaction():
        first = await enqueue(client, asked)
        assert await enqueue(client, asked) == first
    assert await enqueue(client, asked | {"delivery_id": str(uuid_utils.uuid7())}) == first
    await taken(dsn)
    assert await enqueue(client, asked) == first
    by_http = await served.post(DELIVERIES, enqueueable(2, source="api"), key="over-http")
    asked = enqueueable(2, source="api", idempotency_key="over-http")
    assert str(await enqueue(client, asked)) == by_http.json()["delivery_id"]
    await taken(dsn)
    assert await deliveries(dsn) == {"k": str(first), "over-http": by_http.json()["delivery_id"]}
    assert await malformed(dsn) == []


async def test_without_a_key_each_command_is_a_delivery(served, dsn, client):
    """Equal commands without a key are different mails."""
    ids = {str(await enqueue(client, enqueueable())) for _ in range(3)}
    await counted(dsn, 3)
    assert set((await deliveries(dsn)).values()) == ids


async def test_its_own_id_is_kept(served, dsn, client):
    """A command that brings a delivery id is answered with it and delivered under it, in whatever letter case."""
    own = str(uuid_utils.uuid7())
    assert str(await enqueue(client, enqueueable(delivery_id=own.upper()))) == own
    await counted(dsn, 1)
    assert set((await deliveries(dsn)).values()) == {own}


async def test_an_id_of_another_delivery_is_refused_under_it(served, dsn, client):
    """A second command with the id of another one is recorded under that id and makes no mail."""
    own = str(uuid_utils.uuid7())
    async with client.transaction():
        for number in (1, 2):
            assert str(await enqueue(client, enqueueable(number, delivery_id=own))) == own
    await taken(dsn)
    await counted(dsn, 1)
    (record,) = await malformed(dsn)
    assert (record["failure_code"], record["field"], record["delivery_id"]) == (
        "idempotency_conflict",
        "idempotency_key",
        own,
    )


async def test_another_command_under_a_key_is_recorded(served, dsn, client):
    """A key that belongs to another command answers its id; the second command is malformed under that id, each of them."""
    first = await enqueue(client, enqueueable(1, idempotency_key="k"))
    for number in (2, 3):
        assert await enqueue(client, enqueueable(number, idempotency_key="k")) == first
    await taken(dsn)
    assert await deliveries(dsn) == {"k": str(first)}
    records = await malformed(dsn)
    assert [record["failure_code"] for record in records] == ["idempotency_conflict"] * 2
    assert {record["delivery_id"] for record in records} == {str(first)}


async def test_a_good_command_after_a_bad_one_keeps_the_answered_id(served, dsn, client):
    """When the first under a key turns out bad, the second is delivered under the id that both were answered."""
    async with client.transaction():
        first = await enqueue(client, enqueueable(1, idempotency_key="k", payload={"to": ["nobody"]}))
        assert await enqueue(client, enqueueable(1, idempotency_key="k")) == first
    await taken(dsn)
    assert await deliveries(dsn) == {"k": str(first)}
    (record,) = await malformed(dsn)
    assert (record["failure_code"], record["delivery_id"]) == ("invalid_address", str(first))


@pytest.mark.parametrize("commits", [True, False])
async def test_concurrent_transactions_with_one_key_make_one_delivery(served, dsn, client, caller, commits):
    """The second waits for the first; when that commits both are one delivery, when it rolls back the second is it."""
    asked = enqueueable(1, idempotency_key="k")
    async with connected(caller) as other:
        transaction = client.transaction()
        await transaction.start()
        first = await enqueue(client, asked)
        waiting = asyncio.create_task(enqueue(other, asked))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        await (transaction.commit() if commits else transaction.rollback())
        second = await waiting
    assert (second == first) is commits
    await taken(dsn)
    assert await deliveries(dsn) == {"k": str(second)}
    assert await malformed(dsn) == []


async def test_a_command_taken_while_another_waits_for_it_is_the_same_delivery(served, dsn, caller):
    """The first is committed, taken and gone from the inbox before the second, which waited for it, goes on."""
    asked = enqueueable(1, idempotency_key="k")
    async with connected(dsn) as taker, connected(caller) as other:
        async with taker.transaction():
            first = await enqueue(taker, asked)
            waiting = asyncio.create_task(enqueue(other, asked))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            await taker.execute(
                "INSERT INTO mail.idempotency_keys (source, key, fingerprint, delivery_id, first_status)"
                " VALUES ('sql', 'k', '', $1, 'rendered')",
                first,
            )
            await taker.execute("DELETE FROM mail.enqueued WHERE delivery_id = $1", first)
        assert await waiting == first


async def test_a_race_for_one_key_has_one_winner(served, dsn, caller):
    """Twenty callers at once with one key are answered one id, while the consumer takes what they commit."""
    asked = enqueueable(1, idempotency_key="k")

    async def once(_number):
        async with connected(caller) as connection:
            return [await enqueue(connection, asked) for _ in range(10)]

    answered = {found for ids in await asyncio.gather(*map(once, range(20))) for found in ids}
    await taken(dsn)
    assert await deliveries(dsn) == {"k": str(*answered)}
    assert await malformed(dsn) == []


# -- bad commands ------------------------------------------------------------------------------------------------

BAD = [
    ({"payload": None}, "missing_field", "payload_json"),
    ({"colour": "red"}, "unknown_field", "colour"),
    ({"idempotency_key": "a key"}, "invalid_field", "idempotency_key"),
    ({"idempotency_key": 12}, "invalid_field", "idempotency_key"),
    ({"idempotency_key": ""}, "invalid_field", "idempotency_key"),
    ({"idempotency_key": "k" * 3000}, "invalid_field", "idempotency_key"),
    ({"idempotency_key": "k", "source": "s" * 100_000}, "unsupported_source", "source"),
    ({"delivery_id": "not an id"}, "invalid_field", "delivery_id"),
    ({"delivery_id": "01890000-0000-4000-8000-000000000000"}, "invalid_field", "delivery_id"),
    ({"delivery_id": 7}, "invalid_field", "delivery_id"),
    ({"send_at_ms": 10**400}, "invalid_field", "send_at_ms"),
    ({"send_at_ms": 1.5}, "invalid_field", "send_at_ms"),
    ({"payload_json": "{"}, "invalid_field", "payload_json"),
    ({"payload": {"to": ["nobody"]}}, "invalid_address", "payload.to[0]"),
    ({"payload": {"subject": "x" * 501}}, "too_large", "payload.subject"),
    ({"payload": {"text": "\u2028", "subject": "a\nb"}}, "invalid_field", "payload.subject"),
    ({"payload_mode": "raw"}, "unsupported_payload_mode", "payload_mode"),
    ({"source": "operator_resend"}, "unsupported_source", "source"),
    ({"payload": {"to": ["ann@example.invalid"]}}, "reserved_domain", "payload.to"),
]


async def test_a_bad_command_is_recorded_under_the_answered_id(served, dsn, client):
    """The same faults are found as everywhere, after the commit, and each record has the id that the caller holds."""
    answered = {}
    for change, code, field in BAD:
        asked = enqueueable(**{name: value for name, value in change.items() if value is not None})
        asked = {
            name: value for name, value in asked.items() if name not in change or change[name] is not None
        }
        answered[str(await enqueue(client, asked))] = (code, field)
    await taken(dsn)
    found = {
        record["delivery_id"]: (record["failure_code"], record["field"]) for record in await malformed(dsn)
    }
    assert found == answered
    assert await deliveries(dsn) == {}


async def test_what_is_no_object_raises(dsn, client):
    """NULL, arrays and scalars fail in the caller's own statement."""
    for asked in (None, "null", "[]", '"text"', "7", "true", "[{}]"):
        with pytest.raises(asyncpg.InvalidParameterValueError, match="takes a JSON object"):
            await client.fetchval(ENQUEUE, asked)
    assert await inbox(dsn) == 0


async def test_what_is_no_jsonb_raises(served, dsn, client):
    """NUL escapes, lone surrogates and broken text never get as far as the function."""
    for text in ('{"a": "\\u0000"}', '{"a": "\\ud800"}', "{", '{"a": NaN}', "[" * 100_000):
        with pytest.raises((asyncpg.DataError, asyncpg.StatementTooComplexError)):
            await client.fetchval(ENQUEUE, text)
    await enqueue(client, enqueueable())
    await counted(dsn, 1)


async def test_hostile_json_is_bounded(serve, dsn, client):
    """Deep, huge and doubled members end as small records or as what the last member says, and the next command is taken."""
    await serve(MAIL_LIMIT_MESSAGE_BYTES=str(1024 * 1024))
    deep = json.dumps(enqueueable(1))[:-1] + ', "x": ' + "[" * 3000 + "]" * 3000 + "}"
    inner = '{"payload_mode": "rendered", "payload": ' + '{"a":' * 2000 + "1" + "}" * 2001
    huge = enqueueable(2, payload={"text": "x" * (8 * 1024 * 1024)})
    doubled = json.dumps(enqueueable(3))[:-1] + ', "idempotency_key": "first", "idempotency_key": "last"}'
    ids = {str(await enqueue(client, asked)): asked for asked in (deep, inner, huge)}
    last = await enqueue(client, doubled)
    await taken(dsn)
    records = {record["delivery_id"]: record for record in await malformed(dsn)}
    assert set(records) == set(ids)
    assert sorted(record["failure_code"] for record in records.values()) == [
        "invalid_json",
        "invalid_json",
        "too_large",
    ]
    assert all(len(record["raw"]) < 300_000 for record in records.values())
    assert await deliveries(dsn) == {"last": str(last)}


async def test_large_commands_are_taken_few_at_a_time(serve, dsn, client, monkeypatch):
    """A batch stays near its bound of bytes however many large commands wait."""
    monkeypatch.setattr(sql, "BATCH_BYTES", 250_000)
    async with client.transaction():
        for number in range(12):
            await enqueue(client, enqueueable(number, payload={"text": "x" * 100_000}))
    sizes = []
    fetch = Store.fetch

    async def counting(self, name, *arguments):
        rows = await fetch(self, name, *arguments)
        if name == "take_enqueued" and rows:
            sizes.append(len(rows))
        return rows

    monkeypatch.setattr(Store, "fetch", counting)
    await serve()
    await counted(dsn, 12)
    assert max(sizes) == 3


async def test_a_command_that_waited_for_days_keeps_its_id(serve, dsn, client):
    """After days without a running service what was committed is delivered under the answered id."""
    answered = await enqueue(client, enqueueable())
    age_ms = 3 * 86_400_000
    old = UUID(int=answered.int - (age_ms << 80))
    await query(
        dsn,
        "UPDATE mail.enqueued SET delivery_id = $1::uuid, command = command || jsonb_build_object('delivery_id', $1::uuid)",
        old,
    )
    await serve()
    await counted(dsn, 1)
    assert set((await deliveries(dsn)).values()) == {str(old)}
