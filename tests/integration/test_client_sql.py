"""`enqueue` on real connections of every driver it names: the mail is there exactly if the caller's transaction commits."""

import asyncio
import json
from contextlib import asynccontextmanager, contextmanager
from uuid import UUID, uuid4

import asyncpg
import psycopg
import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from mailkeep.client import Attachment, Mail, TemplateMail, enqueue, enqueue_async

MAIL = Mail(
    to="ann@example.org",
    subject="100 % 'quoted' $1 :name",
    text="Grüße",
    attachments=[Attachment(filename="f", content=bytes(range(256)))],
)


@contextmanager
def by_psycopg(dsn, **options):
    """Open psycopg's `Connection`."""
    with psycopg.connect(dsn, **options) as connection:
        yield connection, connection


@contextmanager
def by_psycopg_cursor(dsn):
    """Open a cursor of psycopg's."""
    with psycopg.connect(dsn, row_factory=dict_row) as connection, connection.cursor() as cursor:
        yield connection, cursor


@contextmanager
def by_psycopg2(dsn, **options):
    """Open psycopg2's connection."""
    connection = psycopg2.connect(dsn, **options)
    yield connection, connection
    connection.close()


@contextmanager
def by_sqlalchemy(dsn, driver="psycopg", kind=sqlalchemy.Engine.connect):
    """Open SQLAlchemy's `Connection` or `Session`."""
    engine = sqlalchemy.create_engine(dsn.replace("postgresql:", f"postgresql+{driver}:"))
    with kind(engine) as opened:
        yield opened, opened
    engine.dispose()


SYNC = {
    "psycopg": by_psycopg,
    "psycopg dict_row": lambda dsn: by_psycopg(dsn, row_factory=dict_row),
    "psycopg cursor": by_psycopg_cursor,
    "psycopg2": by_psycopg2,
    "psycopg2 RealDictCursor": lambda dsn: by_psycopg2(dsn, cursor_factory=psycopg2.extras.RealDictCursor),
    "SQLAlchemy Connection": by_sqlalchemy,
    "SQLAlchemy Connection psycopg2": lambda dsn: by_sqlalchemy(dsn, "psycopg2"),
    "SQLAlchemy Session": lambda dsn: by_sqlalchemy(dsn, kind=Session),
}


@asynccontextmanager
async def by_asyncpg(dsn, *, codec=False):
    """Open asyncpg's connection in a transaction."""
    connection = await asyncpg.connect(dsn)
    if codec:
        await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    transaction = connection.transaction()
    await transaction.start()
    yield transaction, connection
    await connection.close()


@asynccontextmanager
async def by_async_psycopg(dsn):
    """Open psycopg's `AsyncConnection`."""
    async with await psycopg.AsyncConnection.connect(dsn, row_factory=dict_row) as connection:
        yield connection, connection


@asynccontextmanager
async def by_async_sqlalchemy(dsn, driver, kind):
    """Open SQLAlchemy's `AsyncConnection` or `AsyncSession`."""
    engine = create_async_engine(dsn.replace("postgresql:", f"postgresql+{driver}:"))
    async with kind(engine) as opened:
        yield opened, opened
    await engine.dispose()


ASYNC = {
    "asyncpg": by_asyncpg,
    "asyncpg with a jsonb codec": lambda dsn: by_asyncpg(dsn, codec=True),
    "psycopg AsyncConnection": by_async_psycopg,
    "SQLAlchemy AsyncConnection": lambda dsn: by_async_sqlalchemy(
        dsn, "psycopg", lambda engine: engine.connect()
    ),
    "SQLAlchemy AsyncSession": lambda dsn: by_async_sqlalchemy(dsn, "psycopg", AsyncSession),
}


async def enqueued(dsn):
    """Return the commands in the inbox by the ids that were answered."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT delivery_id, command FROM mail.enqueued")
    finally:
        await connection.close()
    return {row["delivery_id"]: json.loads(row["command"]) for row in rows}


def check_command(command):
    """Check that `command` is `MAIL` unharmed by quoting and placeholders."""
    assert command["source"] == "sql"
    assert command["payload"]["subject"] == MAIL.subject
    assert command["payload"]["text"] == MAIL.text


@pytest.mark.parametrize("driver", SYNC)
async def test_the_mail_commits_with_the_callers_transaction(dsn, driver):
    """After a commit the command is in the inbox under the id that was answered; after a rollback there is nothing."""
    with SYNC[driver](dsn) as (transaction, connection):
        enqueue(connection, MAIL)
        transaction.rollback()
        assert await enqueued(dsn) == {}
        answered = enqueue(connection, MAIL)
        assert type(answered) is UUID
        assert await enqueued(dsn) == {}
        transaction.commit()
    ((found, command),) = (await enqueued(dsn)).items()
    assert found == answered
    check_command(command)


@pytest.mark.parametrize("driver", ASYNC)
async def test_the_mail_commits_with_the_callers_transaction_on_asyncio(dsn, driver):
    """The same for drivers that are awaited."""
    async with ASYNC[driver](dsn) as (transaction, connection):
        await enqueue_async(connection, MAIL)
        await transaction.rollback()
    assert await enqueued(dsn) == {}
    async with ASYNC[driver](dsn) as (transaction, connection):
        answered = await enqueue_async(connection, MAIL)
        assert isinstance(answered, UUID)
        assert await enqueued(dsn) == {}
        await transaction.commit()
    ((found, command),) = (await enqueued(dsn)).items()
    assert found == answered
    check_command(command)


async def test_an_earlier_mail_with_the_same_key_is_answered(dsn):
    """A transaction that is run again under the same key answers the first id."""
    keyed = Mail(to="ann@example.org", subject="s", text="t", idempotency_key="order-1042")
    with psycopg.connect(dsn) as connection:
        first = enqueue(connection, keyed)
    with psycopg.connect(dsn) as connection:
        assert enqueue(connection, keyed) == first


async def test_a_role_needs_two_grants_and_no_more(dsn):
    """USAGE on the schema and EXECUTE on the function let an application enqueue; it can't read the queue."""
    role = f"app_{uuid4().hex[:8]}"
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {role}")
        owner.execute(f"GRANT USAGE ON SCHEMA mail TO {role}")
        with psycopg.connect(dsn, autocommit=True, options=f"-c role={role}") as connection:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                enqueue(connection, MAIL)
            owner.execute(f"GRANT EXECUTE ON FUNCTION mail.enqueue(jsonb) TO {role}")
            enqueue(connection, MAIL)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT * FROM mail.enqueued")
        owner.execute(f"DROP OWNED BY {role}")
        owner.execute(f"DROP ROLE {role}")
    assert len(await enqueued(dsn)) == 1


async def test_an_order_and_its_mail_are_both_there_or_neither(sending, next_hop, dsn):
    """The service sends the mail of the transaction that committed, and never that of the one that failed."""
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("CREATE TABLE orders (number text PRIMARY KEY)")

    def order(number):
        variables = {"product": number, "start_url": "https://example.com"}
        mail = TemplateMail(to="ann@example.org", template_id="welcome", locale="en", variables=variables)
        with psycopg.connect(dsn) as connection:
            answered = enqueue(connection, mail)
            connection.execute("INSERT INTO orders VALUES (%s)", (number,))
        return answered

    first = await asyncio.to_thread(order, "A-1")
    with pytest.raises(psycopg.errors.UniqueViolation):
        await asyncio.to_thread(order, "A-1")
    second = await asyncio.to_thread(order, "A-2")
    for answered in (first, second):
        async with asyncio.timeout(60):
            while (await sending.get(f"/api/v1/internal/deliveries/{answered}")).status_code == 404:
                await asyncio.sleep(0.02)
        assert (await sending.settled(answered, "sent"))["source"] == "sql"
    assert len(next_hop.messages) == 2
