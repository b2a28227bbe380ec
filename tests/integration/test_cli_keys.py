"""`mailkeep keys` as an operator uses it: processes of their own on a real store."""

import json

from test_cli_queue import EXIT_FAILED, EXIT_USAGE, run

from mailkeep.core.api_key import parse_token


async def test_keys_are_made_listed_and_revoked(dsn):
    """The token is shown once and alone on standard output; the list shows who may send what, and the record who did it."""
    environ = {"MAIL_POSTGRES_DSN": dsn}
    assert (await run(environ, "keys", "list")).lines == ["no keys"]
    senders = ("--sender", "Billing@example.org", "--sender", "@News.example.org")
    made = await run(environ, "keys", "create", "billing", *senders, "--expires-in", "90d", "--as", "eve")
    assert made.code == 0, made.errors
    (token,) = made.lines
    key_id = parse_token(token).key_id
    assert key_id in made.errors
    assert token not in made.errors
    (listed,) = (await run(environ, "keys", "list", "--json")).json()["keys"]
    assert (listed["key_id"], listed["name"], listed["actor"]) == (key_id, "billing", "eve")
    assert listed["senders"] == ["billing@example.org", "@news.example.org"]
    assert listed["expires_at"] > listed["created_at"]
    assert token.split("_", 2)[2] not in json.dumps(listed)
    titles, row = (await run(environ, "keys", "list")).lines
    assert titles.startswith("ID")
    assert row.startswith(key_id)
    assert (await run(environ, "keys", "revoke", key_id, "--as", "eve")).code == 0
    assert (await run(environ, "keys", "list")).lines == ["no keys"]
    (ended,) = (await run(environ, "keys", "list", "--all", "--json")).json()["keys"]
    assert ended["revoked_by"] == "eve"


async def test_what_is_given_wrong_is_said(dsn):
    """A sender that is none, a key that is not there, an end that is no duration: one line each, nothing made."""
    environ = {"MAIL_POSTGRES_DSN": dsn}
    wrong = await run(environ, "keys", "create", "billing", "--sender", "billing")
    assert (wrong.code, wrong.lines) == (EXIT_FAILED, [])
    assert "ann@example.org" in wrong.errors
    soon = await run(
        environ, "keys", "create", "billing", "--sender", "a@example.org", "--expires-in", "soon"
    )
    assert soon.code == EXIT_USAGE
    assert (await run(environ, "keys", "revoke", "0" * 16)).code == EXIT_FAILED
    assert (await run(environ, "keys", "list", "--all")).lines == ["no keys"]
