"""`mailkeep replicas`, `dead-letters`, `queue shape` and `queue delete`, as an operator uses them beside a service."""

from test_cli_changes import WHY
from test_cli_queue import EXIT_FAILED, EXIT_USAGE, deferred, environ, run  # noqa: F401 - a fixture is used by its name
from test_http_operator import DEFERRED, accept, execute, scheduled


async def test_replicas_are_listed(environ, sending):  # noqa: F811
    """Live ones by default, with host, process and what they hold; the others with --all; exit code 1 when none lives."""
    (replica,) = (await run(environ, "replicas", "--json")).json()
    assert (replica["state"], replica["in_flight"]) == ("live", 0)
    listed = await run(environ, "replicas")
    assert listed.lines[1].split()[:2] == [replica["replica_id"], "live"]
    await sending.service.stop()
    gone = await run(environ, "replicas")
    assert (gone.code, gone.lines) == (EXIT_FAILED, ["No replica is live: `mailkeep serve` starts one."])
    assert [one["state"] for one in (await run(environ, "replicas", "--all", "--json")).json()] == ["stopped"]


async def test_dead_letters_are_listed_page_by_page(environ, serve, sending, next_hop, dsn):  # noqa: F811
    """Newest first, with cause and reason; a page ends with the cursor of the next."""
    assert (await run(environ, "dead-letters")).lines == ["No dead letter."]
    await sending.service.stop()
    next_hop.reply = DEFERRED
    served = await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
        MAIL_RETRY_LADDER_TRANSACTIONAL="10ms",
    )
    ids = [await accept(served) for _ in range(3)]
    for delivery_id in ids:
        await served.settled(delivery_id, "dead_letter")
    first = (await run(environ, "dead-letters", "--limit", "2", "--json")).json()
    assert [letter["delivery_id"] for letter in first["deliveries"]] == ids[:0:-1]
    listed = await run(environ, "dead-letters", "--limit", "2")
    assert listed.lines[-1] == f"-- there are more: --cursor {first['cursor']}"
    assert "ladder_exhausted" in listed.lines[1]
    last = (await run(environ, "dead-letters", "--cursor", first["cursor"], "--json")).json()
    assert [letter["delivery_id"] for letter in last["deliveries"]] == ids[:1]
    assert (await run(environ, "dead-letters", "--rule", "no_such_rule")).lines == ["No dead letter."]
    assert (await run(environ, "dead-letters", "--class", "bulk")).code == EXIT_USAGE


async def test_the_shape_counts_what_is_live_by_age(environ, sending, dsn):  # noqa: F811
    """One row a domain, the fullest first; each delivery in the column of its age; what has ended does not count."""
    empty = (await run(environ, "queue", "shape", "--json")).json()
    assert (empty["rows"], empty["total"]) == ([], 0)
    here = [await scheduled(sending) for _ in range(3)]
    await scheduled(sending, payload={"to": ["cy@example.net"]})
    ended = await accept(sending)
    await sending.settled(ended, "sent")
    for delivery_id, minutes in zip(here, (1, 7, 5000), strict=True):
        await execute(
            dsn,
            "UPDATE mail.deliveries SET accepted_at = mail.now() - $2 * interval '1 minute' WHERE id = $1::uuid",
            delivery_id,
            minutes,
        )
    found = (await run(environ, "queue", "shape", "--json")).json()
    assert [(row["name"], row["total"]) for row in found["rows"]] == [("example.org", 3), ("example.net", 1)]
    assert found["rows"][0]["counts"] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    shown = await run(environ, "queue", "shape", "--limit", "1")
    assert shown.lines[1].split() == ["example.org", "3", "1", "1", "0", "0", "0", "0", "0", "0", "0", "1"]
    assert shown.lines[-1].endswith("1 rows not shown")
    by_hop = (await run(environ, "queue", "shape", "--by", "next_hop", "--json")).json()
    assert [(row["name"], row["total"]) for row in by_hop["rows"]] == [("default", 4)]
    assert (await run(environ, "queue", "shape", "--by", "colour")).code == EXIT_USAGE


async def test_a_deleted_one_leaves_no_content(environ, sending, next_hop, dsn):  # noqa: F811
    """What waits is cancelled and erased at once, what has ended is erased and stays what it is; both are recorded."""
    waiting = await deferred(environ, sending, next_hop)
    ended = await accept(sending)
    await sending.settled(ended, "sent")
    done = await run(environ, "queue", "delete", waiting, ended, *WHY)
    assert done.lines == [f"{waiting} cancelled", f"{ended} sent"]
    assert await execute(dsn, "SELECT FROM mail.payloads") == []
    recorded = await execute(dsn, "SELECT verb, status FROM mail.operator_changes ORDER BY id")
    assert [tuple(row) for row in recorded] == [("delete", "cancelled"), ("delete", "sent")]
    assert (await run(environ, "queue", "resend", ended, *WHY)).code == EXIT_FAILED
