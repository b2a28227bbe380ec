"""Mail that commits with the caller's own rows: `mail.enqueue` on the caller's connection, inside its transaction.

The mail exists exactly if the transaction commits; nothing is committed, rolled back or retried here. Nobody waits for
the answer: what Mailkeep can't take is kept as a malformed command for its operators. The database is Mailkeep's own, and
the role needs USAGE on the schema `mail` and EXECUTE on the function.
"""

from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final
from uuid import UUID

from mailkeep.client.mail import AnyMail, command, to_json

# By way of text, so that no JSON codec of the caller's connection encodes it a second time.
_FORMAT: Final = "SELECT mail.enqueue(%s::text::jsonb) AS delivery_id"
_NUMERIC: Final = "SELECT mail.enqueue($1::text::jsonb)"
_NAMED: Final = "SELECT mail.enqueue(CAST(CAST(:command AS text) AS jsonb))"


def enqueue(connection: Any, mail: AnyMail) -> UUID:  # noqa: ANN401 - duck-typed: no driver is required
    """Hand over one mail in the transaction of `connection` and return the delivery's id.

    Takes connections and cursors of psycopg, psycopg2 and other DB-API drivers with `%s` parameters, Django's
    `django.db.connection`, and SQLAlchemy's `Connection` and `Session`. On a connection in autocommit mode the mail is
    committed at once. Raises what the driver raises.
    """
    text = to_json(command(mail))
    if hasattr(connection, "fetchone"):
        return _enqueue_by_cursor(connection, text)
    if hasattr(connection, "cursor"):
        with closing(connection.cursor()) as cursor:
            return _enqueue_by_cursor(cursor, text)
    return _id(connection.execute(_sqlalchemy_text(), {"command": text}).scalar_one())


async def enqueue_async(connection: Any, mail: AnyMail) -> UUID:  # noqa: ANN401 - duck-typed: no driver is required
    """Do the same on a connection of asyncpg, psycopg's `AsyncConnection`, or SQLAlchemy's `AsyncConnection` or `AsyncSession`."""
    text = to_json(command(mail))
    if hasattr(connection, "fetchval"):
        return _id(await connection.fetchval(_NUMERIC, text))
    if hasattr(connection, "cursor"):
        async with connection.cursor() as cursor:
            await cursor.execute(_FORMAT, (text,))
            return _row_id(await cursor.fetchone())
    return _id((await connection.execute(_sqlalchemy_text(), {"command": text})).scalar_one())


def _enqueue_by_cursor(cursor: Any, text: str) -> UUID:  # noqa: ANN401 - duck-typed: no driver is required
    cursor.execute(_FORMAT, (text,))
    return _row_id(cursor.fetchone())


def _row_id(row: Any) -> UUID:  # noqa: ANN401 - what the caller's row factory makes
    return _id(row["delivery_id"] if isinstance(row, Mapping) else row[0])


def _id(value: object) -> UUID:
    return value if isinstance(value, UUID) else UUID(str(value))


def _sqlalchemy_text() -> Any:  # noqa: ANN401 - an SQLAlchemy clause
    from sqlalchemy import text  # noqa: PLC0415 - only where a connection of SQLAlchemy was given

    return text(_NAMED)
