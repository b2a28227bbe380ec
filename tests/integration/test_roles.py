"""Least-privilege roles: the service runs under one that may change no table, people look under one that changes nothing."""

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import timedelta
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import httpx2
import pytest
from http_kit import DELIVERIES, LOGIN_CODES, Served, command, login_code
from queue_kit import accepted, rows
from send_kit import SENDER, calling, new_key
from typer.testing import CliRunner
from webhook_kit import SECRET, Receiver

from mailkeep.cli import app
from mailkeep.operator.keys import OperatorKeys
from mailkeep.operator.queue import DeliveryQuery, OperatorQueue
from mailkeep.settings import Settings
from mailkeep.store.migrate import MigrationError, migrate, roles_script
from mailkeep.store.postgres import Store
from mailkeep.store.retention import Retention
from mailkeep.store.sealing import new_key as new_payload_key
from mailkeep.store.suppressions import Suppressions
from mailkeep.store.webhooks import WebhookCursors
from mailkeep.wiring import Service

ROLES = roles_script().partition("DO $$")[2].partition("END $$;")[0]
ROLES = f"DO $${ROLES}END $$;"
DENIED = asyncpg.InsufficientPrivilegeError


@asynccontextmanager
async def connected(dsn):
    """Yield a connection."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


class Logins:
    """The DSNs of one database under its owner's login, and under one for each of the three roles of the script."""

    def __init__(self, dsn, suffix):
        where = urlsplit(dsn)
        host = where.netloc.rpartition("@")[2]
        self.admin = dsn
        self.names = {name: f"{name}_{suffix}" for name in ("owner", "service", "reader", "producer")}
        self.owner, self.service, self.reader, self.producer = (
            where._replace(netloc=f"{login}@{host}").geturl() for login in self.names.values()
        )


@pytest.fixture
async def logins(cluster):
    """Make the database, migrate it as its owner, who is no superuser, and run the script, twice."""
    suffix = uuid4().hex[:8]
    dsn = urlsplit(cluster)._replace(path=f"/roles_{suffix}").geturl()
    made = Logins(dsn, suffix)
    async with connected(cluster) as admin:
        for login in made.names.values():
            await admin.execute(f"CREATE ROLE {login} LOGIN")
        await admin.execute(f"CREATE DATABASE roles_{suffix} OWNER {made.names['owner']}")
    async with connected(dsn) as admin:
        await admin.execute(ROLES)  # an administrator makes them; the owner grants them rights
    async with connected(made.owner) as owner:
        await migrate(owner)
        for _ in range(2):
            await owner.execute(roles_script())
    async with connected(dsn) as admin:
        for role in ("service", "reader", "producer"):
            await admin.execute(f"GRANT mailkeep_{role} TO {made.names[role]}")
    yield made
    async with connected(cluster) as admin:
        await admin.execute(f"DROP DATABASE roles_{suffix} WITH (FORCE)")
        for login in made.names.values():
            await admin.execute(f"DROP ROLE {login}")


async def denied(dsn, *statements):
    """Check that each statement is refused to this login."""
    async with connected(dsn) as connection:
        for statement in statements:
            with pytest.raises(DENIED):
                await connection.execute(statement)


async def test_the_service_works_under_its_role(logins, next_hop, tmp_path, log_lines):
    """Each way in, bounces, webhooks, operators' changes, erasure and keys work: no right is missing, and no worker complains."""
    receiver = Receiver()
    await receiver.start()
    webhooks, keys = tmp_path / "webhooks.toml", tmp_path / "keys"
    webhooks.write_text(
        f'[webhook.shop]\nurl = "http://127.0.0.1:{receiver.port}/"\nsecrets = ["{SECRET}"]\nallow_private = true\n'
    )
    keys.write_text(new_payload_key("k1"))
    service = await Service.start(
        Settings.load(
            {
                "MAIL_POSTGRES_DSN": logins.service,
                "MAIL_INTERNAL_HTTP_ADDR": "127.0.0.1:0",
                "MAIL_SMTP_MODE": "smtp",
                "MAIL_SMTP_ADDR": next_hop.address,
                "MAIL_SMTP_FROM_EMAIL": "mail@mailkeep.example",
                "MAIL_SHUTDOWN_TIMEOUT": "6s",
                "MAIL_SEND_HTTP_ADDR": "127.0.0.1:0",
                "MAIL_WEBHOOKS_FILE": str(webhooks),
                "MAIL_PAYLOAD_KEYS_FILE": str(keys),
            }
        ),
        with_gauges=True,
    )
    try:
        async with httpx2.AsyncClient(base_url=f"http://{service.http_address}", timeout=60) as client:
            served = Served(service, client)
            first = (await served.post(DELIVERIES, command())).json()["delivery_id"]
            await served.settled(first, "sent")
            why = {"reason": "a test"}
            assert (await served.post(f"{DELIVERIES}/{first}/resend", why)).status_code == 202
            code = (await served.post(LOGIN_CODES, login_code(), "k")).json()["delivery_id"]
            await served.settled(code, "sent")
            async with connected(logins.producer) as producer:
                by_sql = await producer.fetchval("SELECT mail.enqueue($1)", json.dumps(command()))
                bad = await producer.fetchval("SELECT mail.enqueue($1)", json.dumps({"payload_mode": "x"}))
            assert bad
            async with asyncio.timeout(60):
                while (await served.get(f"{DELIVERIES}/{by_sql}")).status_code == 404:
                    await asyncio.sleep(0.02)
            await served.settled(str(by_sql), "sent")
            next_hop.reply = "550 5.1.1 no such user"
            gone = (await served.post(DELIVERIES, command())).json()["delivery_id"]
            await served.settled(gone, "failed")
            (suppressed,) = (await served.get("/api/v1/internal/suppressions")).json()["suppressions"]
            path = f"/api/v1/internal/suppressions/{suppressed['suppression_id']}"
            assert (await client.delete(path)).status_code == 200
            assert (await served.get(f"{DELIVERIES}/{gone}/explain")).status_code == 200
            await check_sends(served, logins)
            assert len(await receiver.got(1)) >= 1
            wanted = {"recipient": SENDER, "cancel": True, **why}
            erased = await served.post("/api/v1/internal/erasures", wanted)
            assert (erased.status_code, erased.json()["erased"]["api_keys"]) == (200, 1)
    finally:
        await service.stop()
        receiver.stop()
    assert [line for line in log_lines if line["log_level"] in {"error", "critical"}] == []


async def check_sends(served, logins):
    """Send with a key made under the service's login, have the mail refused, and wait for its bounce."""
    token = (await new_key(logins.service)).token
    async with calling(served) as calls:
        sent = (await calls.post(token)).json()["delivery_id"]
    await served.settled(sent, "failed")
    async with asyncio.timeout(60):
        while not (await served.get(DELIVERIES, source="bounce")).json()["deliveries"]:
            await asyncio.sleep(0.02)


async def test_days_are_made_and_dropped_under_the_service_role(logins):
    """Retention sweeps whole days, and new days get their partitions, although the role may create and drop nothing."""
    store = await Store.open(logins.service, pool_size=2)
    try:
        await accepted(store)
        await rows(
            store, "UPDATE mail.deliveries SET status = 'cancelled', due_at = NULL, finished_at = mail.now()"
        )
        async with connected(logins.admin) as admin:
            name = await admin.fetchval("SELECT current_database()")
            await admin.execute(
                f"ALTER DATABASE {name} SET mail.clock_offset = '{timedelta(days=40).total_seconds()} seconds'"
            )
        await store._pool.expire_connections()
        swept = await Retention(
            store, delivery_s=86400, payload_s=3600, key_s=604800, malformed_s=86400
        ).sweep()
        assert swept.days_dropped >= 1
        await accepted(store)
    finally:
        await store.close()


async def test_the_service_role_changes_no_table(logins):
    """It may not create, alter or drop, nor change what stands for ever; and the partitions' functions do nothing else."""
    await denied(
        logins.service,
        "CREATE TABLE mail.mine (x int)",
        "ALTER TABLE mail.deliveries ADD COLUMN x int",
        "DROP TABLE mail.attempts",
        "TRUNCATE mail.deliveries",
        "UPDATE mail.deployment SET hash_key = hash_key",
        "DELETE FROM mail.schema_migrations",
        "DELETE FROM mail.erasures",
        "SELECT mail.enqueue('{}')",
    )
    async with connected(logins.service) as service:
        for arguments in ("'20261122', ARRAY['deployment']", "'x_or_more', ARRAY['payloads']"):
            with pytest.raises((asyncpg.InvalidParameterValueError, asyncpg.InvalidDatetimeFormatError)):
                await service.execute(f"SELECT mail.drop_day({arguments})")


async def test_a_reader_sees_the_queue_and_no_content(logins):
    """Lists and attempts can be read, content and raw fields can't, and nothing can be changed."""
    store = await Store.open(logins.service, pool_size=2)
    delivery_id = await accepted(store)
    await store.close()
    reading = await Store.open(logins.reader, pool_size=1)
    try:
        queue = OperatorQueue(reading)
        query = DeliveryQuery((), None, None, None, "ann@example.org", None, None, None)
        assert [found.delivery_id for found in (await queue.page(query, 10)).deliveries] == [delivery_id]
        assert await queue.attempts(delivery_id) is not None
        assert await Suppressions(reading).page(10) == []
        assert await OperatorKeys(reading).page() == []
        assert await WebhookCursors(reading).states() == []
    finally:
        await reading.close()
    await denied(
        logins.reader,
        "SELECT message FROM mail.payloads",
        "SELECT raw FROM mail.malformed_commands",
        "SELECT secret_hash FROM mail.api_keys",
        "DELETE FROM mail.bounces_owed",
        "UPDATE mail.api_keys SET revoked_at = NULL",
        "UPDATE mail.webhooks SET disabled_at = NULL",
        "SELECT command FROM mail.enqueued",
        "UPDATE mail.deliveries SET status = 'held'",
        "DELETE FROM mail.suppressions",
        "SELECT mail.ensure_partitions(current_date, current_date)",
        "SELECT mail.enqueue('{}')",
    )


async def test_a_producer_has_one_function(logins):
    """It may enqueue, and can neither read nor change anything else, not even what it enqueued."""
    async with connected(logins.producer) as producer:
        assert await producer.fetchval("SELECT mail.enqueue($1)", json.dumps(command()))
    await denied(
        logins.producer,
        "SELECT * FROM mail.enqueued",
        "SELECT * FROM mail.deliveries",
        "SELECT id FROM mail.api_keys",
        "SELECT * FROM mail.bounces_owed",
        "SELECT * FROM mail.webhooks",
        "INSERT INTO mail.enqueued (command, size_bytes) VALUES ('{}', 2)",
        "SELECT hash_key FROM mail.deployment",
        "SELECT mail.drop_day('20261122', ARRAY['payloads'])",
    )


async def test_a_new_version_is_migrated_by_the_owner(logins):
    """Under the service's role a start that would have to migrate says who must, and changes nothing."""
    async with connected(logins.owner) as owner:
        await owner.execute(
            "DELETE FROM mail.schema_migrations WHERE version = (SELECT max(version) FROM mail.schema_migrations)"
        )
    with pytest.raises(MigrationError, match="mailkeep migrate"):
        await Store.open(logins.service, pool_size=1)


def test_the_script_is_printed():
    """`mailkeep migrate --print-roles` needs no database."""
    done = CliRunner().invoke(app, ["migrate", "--print-roles"])
    assert (done.exit_code, done.output) == (0, roles_script())
