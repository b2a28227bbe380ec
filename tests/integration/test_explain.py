"""`…/explain` and `mailkeep explain`: each state of a delivery is told with its cause and what comes next."""

import asyncio

import pytest
from http_kit import DELIVERIES, LOGIN_CODES, login_code
from smtp_servers import Act, scripted_peer
from test_cli_queue import EXIT_FAILED, run
from test_http_changes import WHY, change
from test_http_operator import DEFERRED, accept, scheduled

SENDER = "mail@mailkeep.example"


async def explained(served, delivery_id):
    """Return the explanation of a delivery."""
    answer = await served.get(f"{DELIVERIES}/{delivery_id}/explain")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_mail_that_waits_says_for_what(sending, next_hop):
    """A scheduled one names its time; a deferred one the reply, its rule, the waits behind it and its next attempt."""
    waiting = await scheduled(sending)
    found = await explained(sending, waiting)
    delivery = (await sending.get(f"{DELIVERIES}/{waiting}")).json()
    assert (found["why"], found["next_at"]) == ("it is scheduled for later", delivery["due_at"])
    assert (found["waits_used"], found["waits"], found["last_attempt"]) == (0, 9, None)
    next_hop.reply = DEFERRED
    deferred = await accept(sending)
    delivery = await sending.settled(deferred, "rendered")
    found = await explained(sending, deferred)
    assert found["why"] == "attempt 1 did not deliver: 450 4.3.2 Not now, <…@…>"
    assert (found["next"], found["next_at"]) == ("its next attempt is due", delivery["due_at"])
    assert (found["waits_used"], found["attempts"]) == (1, 1)
    assert (found["last_attempt"]["rule"], found["last_attempt"]["phase"]) == ("rcpt_deferred", "rcpt")
    assert "ann@" not in str(found)


async def test_mail_of_a_next_hop_that_is_out_names_its_cause(serve, unused_tcp_port):
    """Parked mail says which next hop is out, since when and why, and that no wait of the ladder is used."""
    address = f"127.0.0.1:{unused_tcp_port}"
    served = await serve(MAIL_SMTP_MODE="smtp", MAIL_SMTP_ADDR=address, MAIL_SMTP_FROM_EMAIL=SENDER)
    delivery_id = [await accept(served) for _ in range(3)][-1]
    async with asyncio.timeout(60):
        while not (found := await explained(served, delivery_id))["route"]["out_for"]:
            await asyncio.sleep(0.1)
        while (found := await explained(served, delivery_id))["status"] != "rendered":
            await asyncio.sleep(0.01)
    assert found["why"].startswith("its next hop default is out: connection refused")
    assert (found["waits_used"], found["route"]["live_replicas"], found["route"]["out_for"]) == (0, 1, 1)
    assert found["route"]["since"] is not None


async def test_held_mail_says_what_may_be_done(serve, sending):
    """One that a person held names who and why; one whose outcome is unknown under at_most_once is not released."""
    by_hand = await scheduled(sending)
    await change(sending, by_hand, "hold")
    found = await explained(sending, by_hand)
    assert found["why"] == "it is held by ann: wrong price"
    assert [(one["verb"], one["actor"]) for one in found["changes"]] == [("hold", "ann")]
    async with scripted_peer(dot=Act.CLOSE) as peer:
        served = await serve(
            MAIL_SMTP_MODE="smtp", MAIL_SMTP_ADDR=f"127.0.0.1:{peer.port}", MAIL_SMTP_FROM_EMAIL=SENDER
        )
        unknown = await accept(served, guarantee="at_most_once")
        await served.settled(unknown, "held")
        found = await explained(served, unknown)
    assert "may have been delivered" in found["why"]
    assert "confirm" in found["next"]
    assert found["last_attempt"]["certainty"] == "unknown"
    status, problem = await change(served, unknown, "release")
    assert (status, problem["code"]) == (409, "wrong_status")
    assert (await change(served, unknown, "confirm"))[1]["status"] == "sent"


@pytest.mark.parametrize(
    ("reply", "status", "why"),
    [
        ("250 2.1.5 Ok", "sent", "every recipient was accepted by the next hop"),
        ("550 5.1.1 No such user", "failed", "refused for good: 550 5.1.1 No such user"),
    ],
)
async def test_mail_that_ended_says_how(sending, next_hop, reply, status, why):
    """What ended has no next step of its own."""
    next_hop.reply = reply
    delivery_id = await accept(sending)
    await sending.settled(delivery_id, status)
    found = await explained(sending, delivery_id)
    assert (found["why"], found["next_at"]) == (why, None)
    assert found["next"].startswith("nothing")


async def test_the_command_line_tells_the_same_beside_and_without_a_service(sending, dsn):
    """`mailkeep explain` reads the table itself, so that it also says when no replica runs."""
    delivery_id, environ = await scheduled(sending), {"MAIL_POSTGRES_DSN": dsn}
    told = await run(environ, "explain", delivery_id)
    assert "why       it is scheduled for later" in told.lines
    assert (await run(environ, "explain", delivery_id, "--json")).json() == await explained(
        sending, delivery_id
    )
    await change(sending, delivery_id, "cancel", WHY)
    assert "it was cancelled by ann: wrong price" in (await run(environ, "explain", delivery_id)).output
    waiting = await scheduled(sending)
    await sending.service.stop()
    assert "why       no replica runs" in (await run(environ, "explain", waiting)).lines
    unknown = await run(environ, "explain", "01a20320-0000-7000-8000-000000000000")
    assert (unknown.code, "no delivery has the id" in unknown.errors) == (EXIT_FAILED, True)


@pytest.mark.parametrize(
    ("asked", "chain"), [("de-AT", ["de-AT", "de"]), ("de", ["de"]), ("pt-BR", ["pt-BR", "pt", "en"])]
)
async def test_the_locales_that_were_tried_are_told(sending, dsn, asked, chain):
    """An explanation has the chain of locales from the one asked for to the one used."""
    body = login_code(locale=asked)
    delivery_id = (await sending.post(LOGIN_CODES, body, key="code")).json()["delivery_id"]
    found = (await explained(sending, delivery_id))["template"]
    assert (found["template_id"], found["locale"], found["locale_chain"]) == ("login-code", chain[-1], chain)
    shown = await run({"MAIL_POSTGRES_DSN": dsn}, "explain", delivery_id)
    assert f"login-code in {' > '.join(chain)}, catalog {found['catalog_version']}" in shown.output
