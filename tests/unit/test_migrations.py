"""Migrations only expand: the version before must go on while the new one starts, and must be able to come back.

What they take away, rename or begin to demand breaks statements that the version before still runs. A migration that does so all
the same says in a line `-- contract: …` which release was the last to need it. See docs/explanation/upgrades.md.
"""

import re

import pytest

from mailkeep.store.migrate import migrations

FIRST = 5
"""The first migration that ran beside a version without it."""
CONTRACT = re.compile(r"^-- contract: \S.*", re.MULTILINE)
COMMENT = re.compile(r"--[^\n]*")
BODY = re.compile(r"\$(\w*)\$.*?\$\1\$", re.DOTALL)
CREATED = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?([\w.]+)", re.IGNORECASE)
ALTERED = re.compile(r"ALTER TABLE (?:IF EXISTS |ONLY )*([\w.]+)(.*)", re.IGNORECASE | re.DOTALL)
REMOVES = re.compile(
    r"\bDROP (TABLE|COLUMN|FUNCTION|TYPE|VIEW|SCHEMA|DEFAULT)\b|\bRENAME\b|\bTRUNCATE\b", re.IGNORECASE
)
RETYPES = re.compile(r"\bALTER (?:COLUMN )?\w+ (?:SET DATA )?TYPE\b", re.IGNORECASE)
DEMANDS = re.compile(r"\bSET NOT NULL\b", re.IGNORECASE)
ADDS = re.compile(r"\bADD COLUMN\b(?:[^,(]|\([^)]*\))*", re.IGNORECASE)
CONSTRAINS = re.compile(r"\bADD CONSTRAINT (\w+)", re.IGNORECASE)


def breaking(sql):
    """Return what of a migration breaks the version before."""
    if CONTRACT.search(sql):
        return []
    statements = BODY.sub("''", COMMENT.sub("", sql)).split(";")
    created = {name for statement in statements for name in CREATED.findall(statement)}
    return [fault for statement in statements for fault in _breaks(statement, created)]


def _breaks(statement, created):
    altered = ALTERED.search(statement)
    if altered is None:
        yield from ("removes: " + statement.strip() for _ in REMOVES.finditer(statement))
        return
    table, actions = altered.groups()
    if table in created:
        return
    for pattern in (REMOVES, RETYPES, DEMANDS):
        yield from (f"{table}: {found.group()}" for found in pattern.finditer(actions))
    for added in ADDS.findall(actions):
        if re.search(r"\bNOT NULL\b", added, re.IGNORECASE) and not re.search(
            r"\bDEFAULT\b", added, re.IGNORECASE
        ):
            yield f"{table}: {added.strip()}"
    for name in CONSTRAINS.findall(actions):
        # One that takes the place of another is a wider one; a new one may refuse what the version before writes.
        if not re.search(rf"\bDROP CONSTRAINT (?:IF EXISTS )?{name}\b", actions, re.IGNORECASE):
            yield f"{table}: {name}"


def test_migrations_only_expand():
    """What the version before reads and writes stays as it was."""
    later = [migration for migration in migrations() if migration.version >= FIRST]
    assert {migration.name: found for migration in later if (found := breaking(migration.sql))} == {}


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE mail.replicas;",
        "ALTER TABLE mail.replicas DROP COLUMN host;",
        "ALTER TABLE mail.replicas RENAME COLUMN host TO machine;",
        "ALTER TABLE mail.replicas ALTER COLUMN pid TYPE bigint;",
        "ALTER TABLE mail.replicas ALTER COLUMN hops_out SET NOT NULL;",
        "ALTER TABLE mail.replicas ALTER COLUMN hops_out DROP DEFAULT;",
        "ALTER TABLE mail.replicas ADD COLUMN zone text NOT NULL, ADD COLUMN rack text;",
        "ALTER TABLE mail.replicas ADD CONSTRAINT replicas_new CHECK (pid > 0);",
        "DROP FUNCTION mail.enqueue(jsonb);",
    ],
)
def test_what_breaks_the_version_before_is_seen(sql):
    """Each way to take something away or to demand something new is found, and may be said to be meant."""
    assert breaking(sql)
    assert breaking(f"-- contract: nothing needs it since 0.3\n{sql}") == []


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE mail.keys (id text NOT NULL); ALTER TABLE mail.keys ADD CONSTRAINT one CHECK (id <> '');",
        "ALTER TABLE mail.replicas ADD COLUMN zone text, ADD COLUMN rack text NOT NULL DEFAULT 'none';",
        "ALTER TABLE mail.replicas DROP CONSTRAINT pid_known, ADD CONSTRAINT pid_known CHECK (pid >= 0);",
        "ALTER TABLE mail.replicas ALTER COLUMN host DROP NOT NULL; -- DROP TABLE is only said here",
        "CREATE OR REPLACE FUNCTION mail.f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN DROP TABLE x; END $$;",
        "CREATE INDEX replicas_zone ON mail.replicas (zone);",
    ],
)
def test_what_only_expands_is_let_be(sql):
    """New tables, columns that may be left out, wider constraints, functions and indexes harm nobody."""
    assert breaking(sql) == []
