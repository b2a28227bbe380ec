"""Forward migrations: `migrations/NNNN_name.sql`, applied in order, in one transaction, under an advisory lock.

Ten processes may start at once: one applies, the others wait for its commit and find nothing left to do. A process
killed half-way leaves nothing behind, and one that stands still there is cut off by PostgreSQL. Where nothing is missing
nobody waits for anybody. A file that changed after it was applied stops the start.
"""

import hashlib
from importlib.resources import files
from typing import Final, TypeAlias

import asyncpg
import msgspec

Connection: TypeAlias = (
    "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)

LOCK_KEY: Final = 0x6D61696C  # "mail"
STANDSTILL_S: Final = 10
"""A migrator that says nothing for so long is given up by PostgreSQL, before those that wait for its lock give up (30 s)."""

MIGRATION_S: Final = 3600.0
"""One migration of a large queue may build an index; all else on that connection is over soon."""


class Migration(msgspec.Struct, frozen=True):
    """One step of the schema."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the statement text, hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


class MigrationError(Exception):
    """The schema can't be brought to what this build needs; the message says why and what to do."""


def migrations() -> tuple[Migration, ...]:
    """Return every migration of this build in order."""
    folder = files(__package__) / "migrations"
    found = sorted(
        (entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name
    )
    return tuple(
        Migration(int(entry.name[:4]), entry.name[5:].removesuffix(".sql"), entry.read_text(encoding="utf-8"))
        for entry in found
    )


def roles_script() -> str:
    """Return the SQL that makes least-privilege roles for this build's schema."""
    return (files(__package__) / "roles.sql").read_text(encoding="utf-8")


async def migrate(connection: Connection) -> list[Migration]:
    """Apply what is missing and return it. Raises `MigrationError`; PostgreSQL's own errors pass through."""
    try:
        return await _migrate(connection)
    except asyncpg.InsufficientPrivilegeError as fault:
        raise MigrationError(
            f"this role may not bring the schema up to date ({fault}); run `mailkeep migrate` as the role that owns it, then"
            " `mailkeep migrate --print-roles | psql` for the rights of the others"
        ) from fault


async def _migrate(connection: Connection) -> list[Migration]:
    if await connection.fetchval("SELECT to_regclass('mail.schema_migrations')") and not await _missing(
        connection
    ):
        return []  # without the lock: whoever stands still with it in its hands must not hold up other starts
    async with connection.transaction():
        await connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{STANDSTILL_S}s'")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
        await _ensure_schema(connection)
        missing = await _missing(connection)
        for migration in missing:
            await connection.execute(migration.sql, timeout=MIGRATION_S)
            await connection.execute(
                "INSERT INTO mail.schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                migration.version,
                migration.name,
                migration.checksum,
            )
        return missing


async def _missing(connection: Connection) -> list[Migration]:
    rows = await connection.fetch("SELECT version, checksum FROM mail.schema_migrations")
    applied = {row["version"]: row["checksum"] for row in rows}
    for migration in migrations():
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise MigrationError(
                f"migration {migration.version:04d}_{migration.name} differs from the one this database has; "
                "a released migration must never change: use the build that made this database, or a newer one"
            )
    return [migration for migration in migrations() if migration.version not in applied]


async def schema_version(connection: Connection) -> int | None:
    """Return the newest applied version, or None when the schema isn't there."""
    if await connection.fetchval("SELECT to_regclass('mail.schema_migrations')") is None:
        return None
    version: int | None = await connection.fetchval("SELECT max(version) FROM mail.schema_migrations")
    return version


async def _ensure_schema(connection: Connection) -> None:
    # Looked up first: CREATE SCHEMA IF NOT EXISTS asks for the right to create even where nothing is to be created.
    if await connection.fetchval("SELECT to_regnamespace('mail')") is None:
        await connection.execute("CREATE SCHEMA mail")
    if await connection.fetchval("SELECT to_regclass('mail.schema_migrations')") is None:
        await connection.execute(
            "CREATE TABLE mail.schema_migrations (version integer PRIMARY KEY, name text NOT NULL,"
            " checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
