"""`mailkeep queue hold|release|cancel|confirm|resend` and the outage line, as an operator uses them beside a service."""

import asyncio

from test_cli_queue import EXIT_FAILED, EXIT_USAGE, deferred, environ, run  # noqa: F401 - a fixture is used by its name
from test_http_operator import accept

WHY = ("--reason", "wrong price", "--as", "ann")


async def test_a_delivery_is_held_released_and_cancelled(environ, sending, next_hop):  # noqa: F811
    """Each verb says where the delivery stands now; one that does not apply says why and leaves with 1."""
    delivery_id = await deferred(environ, sending, next_hop)
    assert (await run(environ, "queue", "hold", delivery_id, *WHY)).lines == [f"{delivery_id} held"]
    again = await run(environ, "queue", "hold", delivery_id, *WHY)
    assert (again.code, again.errors.strip()) == (
        EXIT_FAILED,
        f"mailkeep: {delivery_id} is held; only what waits can be held",
    )
    assert "wrong price" in (await run(environ, "queue", "--status", "held")).output
    assert (await run(environ, "queue", "release", delivery_id, *WHY)).lines == [f"{delivery_id} rendered"]
    await sending.settled(delivery_id, "sent")
    ended = await run(environ, "queue", "cancel", delivery_id, *WHY)
    assert (ended.code, "only what waits or is held can be cancelled" in ended.errors) == (EXIT_FAILED, True)
    assert (await run(environ, "queue", "hold", delivery_id)).code == EXIT_USAGE  # a reason is asked for


async def test_a_sent_delivery_is_resent_once_under_a_key(environ, sending, next_hop):  # noqa: F811
    """A resend is a new delivery that the service sends by itself; the same key answers the same one."""
    ran = await run(environ, "send", "--to", "ann@example.org", "--subject", "Hello", "--text", "It works.")
    parent_id = ran.output.strip()
    await sending.settled(parent_id, "sent")
    first, again = [
        await run(environ, "queue", "resend", parent_id, "--key", "ticket 7", *WHY) for _ in range(2)
    ]
    assert first.lines == again.lines
    made = first.lines[0].split()[0]
    assert made != parent_id
    assert (await sending.settled(made, "sent"))["parent_id"] == parent_id


async def test_a_next_hop_that_is_out_is_told_with_the_queue(serve, dsn, unused_tcp_port):
    """The list ends with a line that names the next hop, since when it is out, and why."""
    served = await serve(
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=f"127.0.0.1:{unused_tcp_port}",
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
    )
    for _ in range(3):
        await accept(served)
    async with asyncio.timeout(60):
        while "is out for 1 of 1 replicas" not in (await run({"MAIL_POSTGRES_DSN": dsn}, "queue")).output:
            await asyncio.sleep(0.2)
    *_, told = (await run({"MAIL_POSTGRES_DSN": dsn}, "queue")).lines
    assert told.startswith("-- next hop default is out")
    assert told.endswith("its mail is parked: connection refused")
    operator = {
        "MAIL_POSTGRES_DSN": dsn,
        "MAIL_SMTP_MODE": "smtp",
        "MAIL_SMTP_ADDR": f"127.0.0.1:{unused_tcp_port}",
    }
    operator["MAIL_SMTP_FROM_EMAIL"] = "mail@mailkeep.example"
    (hop,) = (await run(operator, "routes", "--json")).json()
    assert (hop["state"]["out_for"], hop["state"]["cause"]) == (1, "connection refused")
    listed = await run(operator, "routes")
    assert "out for 1 of 1" in listed.lines[1]
    assert listed.lines[-1].endswith("its mail is parked: connection refused")
    nowhere = await run(operator | {"MAIL_POSTGRES_DSN": "postgresql://127.0.0.1:1/mail"}, "routes")
    assert (nowhere.code, "how they fare is not known" in nowhere.errors) == (0, True)
