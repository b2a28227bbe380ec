"""`mailkeep suppressions` as an operator uses it: processes of their own on a real store."""

import json

import pytest
from test_cli_queue import EXIT_FAILED, EXIT_USAGE, run

LINES = 10_000


@pytest.fixture
def environ(dsn):
    """The settings of an operator."""
    return {"MAIL_POSTGRES_DSN": dsn}


async def test_addresses_are_added_listed_and_removed(environ):
    """Each verb says what it did; the list shows address, reason, until when, by whom and why."""
    assert (await run(environ, "suppressions", "list")).lines == ["Nothing is suppressed."]
    by = ("--note", "left the company", "--as", "eve")
    added = await run(environ, "suppressions", "add", "Ann@Example.org", "bo@example.org", *by)
    assert (added.code, added.lines) == (0, ["2 suppressed"])
    again = await run(environ, "suppressions", "add", "ann@example.org", *by)
    assert again.lines == ["0 suppressed; 1 were already, or had expired"]
    brief = ("--reason", "complaint", "--expires-in", "30d", "--note", "spam report")
    assert (await run(environ, "suppressions", "add", "cy@example.org", *brief)).code == 0
    titles, *listed, total = (await run(environ, "suppressions", "list")).lines
    assert titles.split() == ["ADDRESS", "REASON", "SINCE", "UNTIL", "BY", "EVIDENCE"]
    assert listed[0].startswith("cy@example.org")
    (ann,) = [line for line in listed if line.startswith("Ann@example.org")]
    for word in ("manual", "removed", "eve", "left the company"):
        assert word in ann
    assert total == "-- 3 suppressions"
    assert (
        (await run(environ, "suppressions", "list", "--limit", 2))
        .lines[-1]
        .startswith("-- 2 suppressions; there")
    )
    one = (await run(environ, "suppressions", "list", "--recipient", "ann@example.org", "--json")).json()
    assert [each["address"] for each in one] == ["Ann@example.org"]
    back = ("--note", "is back")
    removed = await run(environ, "suppressions", "remove", one[0]["suppression_id"], "no@example.org", *back)
    assert (removed.code, removed.lines) == (EXIT_FAILED, ["1 removed"])
    assert removed.errors.strip() == "mailkeep: no@example.org is not suppressed"
    left = (await run(environ, "suppressions", "list", "--reason", "manual", "--json")).json()
    assert [each["address"] for each in left] == ["bo@example.org"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--reason", "spam"),
        ("list", "--recipient", "x"),
        ("add", "ann@example.org"),
        ("add", "x", "--note", "y"),
        ("add", "ann@example.org", "--note", ""),
        ("add", "ann@example.org", "--note", "y", "--expires-in", "soon"),
        ("add", "ann@example.org", "--note", "y", "--expires-in", "99999d"),
        ("add", "ann@example.org", "--note", "y", "--as", "a\nb"),
        ("export", "--format", "xml"),
    ],
)
async def test_what_makes_no_sense_is_wrong_usage(environ, arguments):
    """Exit code 2 and words, never a traceback."""
    ran = await run(environ, "suppressions", *arguments)
    assert (ran.code, "Traceback" in ran.errors) == (EXIT_USAGE, False)


async def test_ten_thousand_lines_are_imported_once(environ, tmp_path):
    """A large file is taken; again it changes nothing; what is exported is what was imported."""
    path = tmp_path / "gone.csv"
    lines = [f"user{n}@example.org,hard_bounce,550 5.1.1 No such user {n}" for n in range(LINES)]
    path.write_text("\n".join(["Address,Reason,Evidence", *lines]) + "\n")
    assert (await run(environ, "suppressions", "import", path)).lines == [f"{LINES} suppressed"]
    again = await run(environ, "suppressions", "import", path)
    assert again.lines == [f"0 suppressed; {LINES} were already, or had expired"]
    exported = await run(environ, "suppressions", "export")
    titles, *rows = exported.lines
    assert titles == "address,reason,evidence,expires_at"
    assert sorted(rows) == sorted(f"{line}," for line in lines)
    assert exported.errors == ""
    as_json = await run(environ, "suppressions", "export", "--format", "jsonl", "--reason", "hard_bounce")
    assert len({json.loads(line)["suppression_id"] for line in as_json.lines}) == LINES


async def test_an_export_is_imported_elsewhere(environ, tmp_path):
    """Reason, evidence and expiry come with the address, in either format, also through a pipe."""
    add = ("suppressions", "add", "ann@example.org", "--reason", "complaint", "--expires-in", "30d")
    await run(environ, *add, "--note", '"a", b=c')
    before = (await run(environ, "suppressions", "list", "--json")).json()
    for name in ("csv", "jsonl"):
        exported = await run(environ, "suppressions", "export", "--format", name)
        path = tmp_path / f"list.{name}"
        path.write_text(exported.output)
        await run(environ, "suppressions", "remove", "ann@example.org", "--note", "moved")
        assert (await run(environ, "suppressions", "import", path)).lines == ["1 suppressed"]
        (after,) = (await run(environ, "suppressions", "list", "--json")).json()
        for member in ("address", "reason", "evidence", "expires_at"):
            assert after[member] == before[0][member]


async def test_a_file_with_a_wrong_line_is_refused_whole(environ, tmp_path):
    """Every wrong line is named by its number, none of what stands there is repeated, and nothing was imported."""
    path = tmp_path / "list.csv"
    path.write_text("address,reason\nann@example.org,\nnot an address,\nbo@example.org,spam\n")
    ran = await run(environ, "suppressions", "import", path)
    assert ran.code == EXIT_FAILED
    assert "line 3: address: not a valid address" in ran.errors
    assert "line 4: reason: must be one of: hard_bounce, complaint, manual" in ran.errors
    assert "not an address" not in ran.errors
    assert (await run(environ, "suppressions", "list")).lines == ["Nothing is suppressed."]
    missing = await run(environ, "suppressions", "import", tmp_path / "none.csv")
    assert (missing.code, "No such file" in missing.errors) == (EXIT_FAILED, True)


async def test_the_queue_shows_who_was_left_out(serve, environ, next_hop):
    """`queue show` has the reason beside the recipient."""
    served = await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
    )
    environ |= {"MAIL_INTERNAL_HTTP_ADDR": f"127.0.0.1:{served.port}"}
    await run(environ, "suppressions", "add", "ann@example.org", "--note", "left the company")
    message = ("--to", "ann@example.org", "--subject", "Hello", "--text", "It works.")
    delivery_id = (await run(environ, "send", *message)).output.strip()
    shown = await run(environ, "queue", "show", delivery_id)
    assert "recipient     a***@e***: suppressed (manual: left the company)" in shown.lines
    assert "reason        on the suppression list, manual: left the company [suppression_list]" in shown.lines
