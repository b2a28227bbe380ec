"""The doctor on live systems: each real cause is provoked, and it names that one and no other, in whatever incident."""

import asyncio
import json
import socket
from contextlib import contextmanager

import asyncpg
import pytest
from doctor_kit import (
    HOUR_S,
    accept,
    attempts_ended,
    causes,
    examined,
    grow_old,
    hop_out,
    severities,
    smtp_environ,
    told,
    until_row,
)
from http_kit import NextHop
from queue_kit import accepted, claim_one, lose, replica
from smtp_servers import Act, Drip, Inbox, aiosmtpd_server, login_checker, scripted_peer
from stream_kit import Valkey, add, fields, query
from test_cli_queue import run

from mailkeep.doctor.backlog import OLD_SNAPSHOT_TRANSACTIONS
from mailkeep.doctor.causes import Cause, Incident, Severity
from mailkeep.doctor.examine import EXIT_CODES
from mailkeep.doctor.look import Doctor

CRITICAL = EXIT_CODES[Severity.CRITICAL]


@pytest.fixture
async def deployed(serve, dsn):
    """Yield a function that runs a service for a next hop; answers it and the settings of an operator beside it."""

    async def deploy(port, **environ):
        settings = smtp_environ(dsn, port, **environ)
        return await serve(**settings), settings

    return deploy


@pytest.fixture
def port_of(next_hop):
    """The port of the next hop that takes all mail."""
    return int(next_hop.address.rpartition(":")[2])


# -- nothing is wrong --------------------------------------------------------------------------------------------------


async def test_a_healthy_system_is_well(deployed, dsn, port_of):
    """Nothing is named, no check failed, each incident was checked, and the command leaves with 0."""
    served, environ = await deployed(port_of)
    for delivery_id in await accept(served, 3):
        await served.settled(delivery_id, "sent")
    report = await examined(environ)
    assert (report.severity, causes(report), severities(report)) == (Severity.OK, set(), {}), told(report)
    assert all(any(check.not_run is None for check in one.checks) for one in report.diagnoses)
    assert not any(check.failed for one in report.diagnoses for check in one.checks)
    ran = await run(environ, "doctor")
    assert ran.code == 0, ran.output
    assert [line.split() for line in ran.lines if not line.startswith(" ")] == [
        [name, "OK"] for name in Incident
    ]
    for seen in ("1 replica alive", "SIZE 33554432", "3 attempts"):
        assert seen in ran.output
    assert "\x1b" not in ran.output


# -- backlog -----------------------------------------------------------------------------------------------------------


async def test_no_replica(store, dsn, port_of):
    """Mail is due and nobody is there to claim it: `no_replica`, exit code 3, and the next step is a command."""
    await accepted(store)
    await grow_old(dsn)
    environ = smtp_environ(dsn, port_of)
    report = await examined(environ)
    assert causes(report) == {Cause.NO_REPLICA}
    assert "1 due, the first for 30" in told(report)
    ran = await run(environ, "doctor", "backlog", "--json")
    assert ran.code == CRITICAL
    (diagnosis,) = ran.json()["diagnoses"]
    assert (diagnosis["incident"], diagnosis["causes"]) == ("backlog", ["no_replica"])
    found = [finding for check in diagnosis["checks"] for finding in check["findings"]]
    assert [finding["next_step"] for finding in found] == ["mailkeep serve"]


async def test_postgresql_is_away(unused_tcp_port, port_of):
    """Where PostgreSQL does not answer that is the finding; what can be checked without it still is."""
    environ = smtp_environ(f"postgresql://ann:canary@127.0.0.1:{unused_tcp_port}/mail", port_of)
    report = await examined(environ)
    assert causes(report) == {Cause.DATABASE_UNREACHABLE}
    assert "canary" not in told(report)
    auth = next(one for one in report.diagnoses if one.incident is Incident.AUTH)
    assert any("offers" in check.seen for check in auth.checks)
    ran = await run(environ, "doctor", "malformed")
    assert ran.code == CRITICAL
    assert "Traceback" not in ran.errors


async def test_a_database_without_schema(cluster, port_of):
    """A database that was never migrated is told as such, and stays as it is."""
    report = await examined(smtp_environ(cluster, port_of))
    assert causes(report) == {Cause.SCHEMA_MISSING}
    assert await query(cluster, "SELECT to_regnamespace('mail') IS NULL AS untouched") == [(True,)]


async def test_somebody_locks_the_queue(deployed, dsn, port_of):
    """A transaction that holds the table is named by its process id, and nothing else is."""
    _, environ = await deployed(port_of)
    connection = await asyncpg.connect(dsn, server_settings={"application_name": "a migration by hand"})
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE mail.deliveries IN ACCESS EXCLUSIVE MODE")
            report = await examined(environ, [Incident.BACKLOG])
            pid = connection.get_server_pid()
    finally:
        await connection.close()
    assert causes(report) == {Cause.DATABASE_LOCKED}
    assert f"backend {pid} (a migration by hand, idle in transaction)" in told(report)


BURN = """
DO $$ BEGIN
    FOR number IN 1..$TIMES LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP;
END $$""".replace("$TIMES", str(OLD_SNAPSHOT_TRANSACTIONS))


@pytest.mark.parametrize("state", ["idle in transaction", "active"])
async def test_somebody_holds_a_snapshot_open(deployed, dsn, port_of, state):
    """A transaction that was left open, or a query without end, is named by its process id and its age; reads without a snapshot are not."""
    served, environ = await deployed(port_of)
    for delivery_id in await accept(served, 3):
        await served.settled(delivery_id, "sent")
    holding = await asyncpg.connect(dsn, server_settings={"application_name": "a report"})
    harmless = await asyncpg.connect(dsn)
    running = None
    try:
        await harmless.execute(
            "BEGIN; SELECT count(*) FROM mail.deliveries"
        )  # READ COMMITTED: it holds nothing
        if state == "active":
            running = asyncio.create_task(holding.execute("SELECT pg_sleep(600)"))
            await until_row(dsn, "SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'")
        else:
            await holding.execute(
                "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM mail.deliveries"
            )
        young = await examined(environ)
        await query(dsn, BURN)
        report = await examined(environ)
        pid = holding.get_server_pid()
        await query(dsn, "SELECT pg_terminate_backend($1)", pid)
        await until_row(dsn, "SELECT WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", pid)
        after = await examined(environ)
    finally:
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        holding.terminate()
        await harmless.close()
    assert (causes(young), causes(after)) == (set(), set()), told(young) + told(after)
    assert causes(report) == {Cause.VACUUM_HELD_BACK}, told(report)
    assert severities(report) == {Incident.BACKLOG: Severity.WARNING}
    assert f"backend {pid} (a report, {state}) has kept what died for " in told(report)
    assert f"end backend {pid} in psql" in told(report)


async def test_the_due_index_is_gone(deployed, dsn, port_of):
    """Without the index that claims use mail still flows, and the doctor says so before it hurts."""
    _, environ = await deployed(port_of)
    await query(dsn, "DROP INDEX mail.deliveries_due")
    assert causes(await examined(environ)) == {Cause.DUE_INDEX_MISSING}


async def test_a_next_hop_that_can_not_be_reached(deployed, dsn, unused_tcp_port):
    """A refused connection opens the breaker: the outage is named, with how much mail is parked."""
    served, environ = await deployed(unused_tcp_port)
    await accept(served, 3)
    await hop_out(dsn)
    report = await examined(environ)
    assert causes(report) == {Cause.NEXT_HOP_UNREACHABLE}
    assert "default is out for all of 1 replica" in told(report)
    assert "mailkeep routes test default" in told(report)


async def test_a_next_hop_that_greets_with_a_refusal(deployed, dsn):
    """A 421 at the greeting is the server's own doing."""
    async with scripted_peer(greeting=b"421 4.3.2 too much to do\r\n") as peer:
        served, environ = await deployed(peer.port)
        await accept(served, 3)
        await hop_out(dsn)
        report = await examined(environ)
    assert causes(report) == {Cause.NEXT_HOP_REFUSES}
    assert "too much to do" in told(report)


async def test_mail_for_a_next_hop_that_was_taken_away(deployed, store, dsn, port_of):
    """Mail of a route that no replica has is claimed by nobody."""
    _, environ = await deployed(port_of)
    await accepted(store, next_hop="former")
    await grow_old(dsn)
    report = await examined(environ)
    assert causes(report) == {Cause.NEXT_HOP_NOT_CONFIGURED}
    assert "former" in told(report)


class SlowHop(NextHop):
    """Takes a second for each message."""

    async def handle_DATA(self, server, session, envelope):
        await asyncio.sleep(1.0)
        return await super().handle_DATA(server, session, envelope)


async def test_too_few_places_for_a_slow_next_hop(deployed, dsn):
    """One place and a second a mail: by Little's law more mail comes than goes, and the sum is told."""
    with aiosmtpd_server(SlowHop()) as port:
        served, environ = await deployed(port, MAIL_ATTEMPT_WORKER_CONCURRENCY="1")
        await accept(served, 60)
        await attempts_ended(dsn, 2)
        await grow_old(dsn)
        report = await examined(environ)
    assert causes(report) == {Cause.CONCURRENCY_TOO_SMALL}
    assert "1 are there, 1 taken" in told(report)


async def test_a_pace_below_the_load(deployed, dsn, port_of, tmp_path):
    """The hop's own messages_per_s holds the mail back, not the number of places."""
    routes = tmp_path / "routes.toml"
    routes.write_text(f'[hop.default]\naddresses = ["127.0.0.1:{port_of}"]\nmessages_per_s = 0.5\n')
    served, environ = await deployed(port_of, MAIL_ROUTES_FILE=str(routes))
    await accept(served, 60)
    await attempts_ended(dsn, 1)
    await grow_old(dsn)
    report = await examined(environ)
    assert causes(report) == {Cause.PACE_TOO_LOW}


async def test_redis_is_away(deployed, port_of, unused_tcp_port):
    """A configured Redis that does not answer is named."""
    _, environ = await deployed(port_of)
    report = await examined(environ | {"MAIL_REDIS_MASTER_ADDR": f"127.0.0.1:{unused_tcp_port}"})
    assert causes(report) == {Cause.REDIS_UNREACHABLE}


async def test_a_stream_that_nobody_reads(deployed, port_of, tmp_path):
    """Commands wait in a stream, and the replicas were started without its Redis."""
    valkey = Valkey(tmp_path / "valkey").start()
    try:
        add(valkey, fields())
        _, environ = await deployed(port_of)
        report = await examined(environ | {"MAIL_REDIS_MASTER_ADDR": str(valkey.socket)})
    finally:
        valkey.stop()
    assert causes(report) == {Cause.STREAM_NOT_READ}


# -- dead letters ------------------------------------------------------------------------------------------------------


async def test_a_next_hop_that_refuses_by_policy(deployed, dsn, next_hop, port_of):
    """Mail refused for good by a rule of the receiver's is given up, and the reply is the evidence."""
    next_hop.reply = "550 5.7.1 Forbidden by our policy for <ann@example.org>"
    served, environ = await deployed(port_of)
    for delivery_id in await accept(served, 3):
        await served.settled(delivery_id, "failed")
    report = await examined(environ)
    assert causes(report) == {Cause.REFUSED_BY_POLICY}
    assert "550 5.7.1 Forbidden by our policy" in told(report)
    assert "ann@" not in told(report)


async def test_a_ladder_that_ended(deployed, dsn, next_hop, port_of):
    """Mail that was deferred until its ladder ended names the deferral."""
    next_hop.reply = "450 4.3.2 Not now"
    served, environ = await deployed(port_of, MAIL_RETRY_LADDER_TRANSACTIONAL="50ms")
    for delivery_id in await accept(served, 2):
        await served.settled(delivery_id, "dead_letter")
    report = await examined(environ)
    assert causes(report) == {Cause.DEFERRED}
    assert severities(report) == {Incident.DEAD_LETTERS: Severity.WARNING}
    assert "2 dead letters, ladder_exhausted" in told(report)


async def test_poison(store, dsn, port_of):
    """A message that was with three replicas as they died."""
    claim = await claim_one(store, await replica(store))
    await lose(store, claim.replica_id)
    while not await query(dsn, "SELECT FROM mail.dead_letters"):
        await store.take_over()
        heir = await replica(store)
        claimed = await store.claim_due(heir, [("default", "transactional", 1)], 1)
        if claimed or await store.claim_suspect(heir, ["default"]):
            await lose(store, heir)
    await replica(store)
    report = await examined(smtp_environ(dsn, port_of))
    assert causes(report) == {Cause.POISON}
    assert severities(report) == {Incident.DEAD_LETTERS: Severity.CRITICAL}


# -- suppressed --------------------------------------------------------------------------------------------------------


async def test_stub_mode(served, dsn, port_of):
    """What a stub took was never tried; the environment of the operator may well say smtp."""
    await accept(served, 1)
    report = await examined(smtp_environ(dsn, port_of))
    assert causes(report) == {Cause.STUB_MODE}
    assert "never tried" in told(report)


async def test_the_suppression_list(deployed, dsn, next_hop, port_of):
    """Mail to an address that bounced is suppressed by our own list."""
    served, environ = await deployed(port_of)
    next_hop.reply = "550 5.1.1 No such user"
    (bounced,) = await accept(served)
    await served.settled(bounced, "failed")
    await accept(served, 3)
    report = await examined(environ)
    assert causes(report) == {Cause.SUPPRESSION_LIST}
    assert "hard_bounce" in told(report)


async def test_the_list_of_the_provider(deployed, dsn, next_hop, port_of):
    """A provider that keeps the recipient on a list of its own is told apart from ours."""
    served, environ = await deployed(port_of)
    next_hop.reply = "550 5.7.1 The recipient is on the suppression list"
    for delivery_id in await accept(served, 3):
        await served.settled(delivery_id, "suppressed")
    assert causes(await examined(environ)) == {Cause.PROVIDER_LIST}


# -- auth --------------------------------------------------------------------------------------------------------------


async def test_a_wrong_password(deployed, dsn):
    """A refused login is named in each incident that it makes, is never shown, and is tried once in a watch."""
    with aiosmtpd_server(Inbox(), authenticator=login_checker(), auth_require_tls=False) as port:
        served, environ = await deployed(port, MAIL_SMTP_USERNAME="ann", MAIL_SMTP_PASSWORD="canary")
        await accept(served, 2)
        await hop_out(dsn)
        report = await examined(environ)
        ran = await run(environ, "doctor", "auth")
        watching = Doctor.of(environ, HOUR_S)
        first, second = [(await watching.look()).probes[0] for _ in range(2)]
    assert causes(report) == {Cause.LOGIN_REFUSED}
    assert (first.old_s, second.probe) == (0.0, first.probe)
    assert second.old_s > 0
    assert {Incident.AUTH, Incident.BACKLOG} == severities(report).keys()
    assert "canary" not in told(report)
    assert ran.code == CRITICAL
    assert "535" in ran.output


AUTH_FAULTS = {
    Cause.LOGIN_NOT_OFFERED: ({"ehlo": b"250-peer.test\r\n250 AUTH GSSAPI\r\n"}, {}, True),
    Cause.STARTTLS_NOT_OFFERED: ({}, {"MAIL_SMTP_TLS": "starttls"}, True),
    Cause.LOGIN_REQUIRED: ({"mail": b"530 5.7.0 Authentication required\r\n"}, {}, False),
    Cause.TLS_FAILED: (
        {"ehlo": b"250-peer.test\r\n250 STARTTLS\r\n", "handshake": b"no TLS here\r\n"},
        {"MAIL_SMTP_TLS": "starttls"},
        True,
    ),
    Cause.ACCOUNT_BLOCKED: ({"mail": b"550 5.7.1 Your account has been suspended\r\n"}, {}, False),
}


@pytest.mark.parametrize("cause", AUTH_FAULTS)
async def test_logins_that_can_not_be(deployed, dsn, cause):
    """Each fault of the login or of TLS is told apart by what the server offers and answers."""
    answers, environ, with_login = AUTH_FAULTS[cause]
    login = {"MAIL_SMTP_USERNAME": "ann", "MAIL_SMTP_PASSWORD": "canary"} if with_login else {}
    async with scripted_peer(**answers) as peer:
        served, settings = await deployed(peer.port, **environ, **login)
        await accept(served, 3)
        await hop_out(dsn)
        report = await examined(settings)
    assert causes(report) == {cause}, told(report)
    assert severities(report)[Incident.AUTH] is Severity.CRITICAL


async def test_a_username_without_a_password(deployed, port_of):
    """Credentials that are not whole are found in the settings; everything else is checked all the same."""
    _, environ = await deployed(port_of)
    report = await examined(environ | {"MAIL_SMTP_USERNAME": "ann"})
    assert causes(report) == {Cause.CREDENTIALS_NOT_PAIRED}
    assert severities(report) == {Incident.AUTH: Severity.CRITICAL}


# -- timeouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["greeting", "ehlo", "mail", "rcpt", "data", "dot"])
async def test_a_next_hop_that_falls_silent(deployed, dsn, phase):
    """A server that stalls is named with the phase and the limit, whichever phase it is."""
    async with scripted_peer(**{phase: Act.STALL}) as peer:
        served, environ = await deployed(peer.port, MAIL_SMTP_TIMEOUT="500ms", MAIL_SMTP_DATA_TIMEOUT="500ms")
        await accept(served, 3)
        await attempts_ended(dsn, 3)
        report = await examined(environ)
    assert causes(report) == {Cause.HOP_STALLS}, told(report)
    assert f"timed_out at {phase}" in told(report)
    assert "limit of 0.5 s" in told(report)


async def test_a_timeout_that_is_too_short(deployed, dsn):
    """A server that answers in two of three seconds, and now and then not in time, is not dead: the limit is short."""
    answer = b"250 2.1.5 recipient ok\r\n"
    async with scripted_peer(rcpt=[Drip(answer, 2.0 / len(answer)), Act.STALL]) as peer:
        served, environ = await deployed(peer.port, MAIL_SMTP_TIMEOUT="3s")
        (first,) = await accept(served)
        await served.settled(first, "sent")
        await accept(served)
        await attempts_ended(dsn, 2)
        report = await examined(environ)
    assert causes(report) == {Cause.TIMEOUT_TOO_SHORT}, told(report)


async def test_a_tarpit(deployed, dsn):
    """A server that delays each answer by more than a second is named although nothing has timed out."""

    def late(answer):
        return Drip(answer, 1.2 / len(answer))

    answers = {
        "greeting": late(b"220 peer.test\r\n"),
        "mail": late(b"250 2.1.0 ok\r\n"),
        "rcpt": late(b"250 2.1.5 ok\r\n"),
    }
    async with scripted_peer(**answers) as peer:
        served, environ = await deployed(peer.port)
        for delivery_id in await accept(served, 3):
            await served.settled(delivery_id, "sent")
        report = await examined(environ)
    assert causes(report) == {Cause.TARPIT}, told(report)
    assert severities(report) == {Incident.TIMEOUTS: Severity.WARNING}


@contextmanager
def port_that_drops_connections():
    """A port whose queue of connections is full, so that nothing answers, as behind a firewall."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        waiting = []
        for _ in range(8):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(server.getsockname())
            waiting.append(client)
        yield server.getsockname()[1]
        for client in waiting:
            client.close()


async def test_a_firewall(deployed, dsn):
    """Where not even a connection is answered the network is at fault, not the server."""
    with port_that_drops_connections() as port:
        served, environ = await deployed(port, MAIL_SMTP_TIMEOUT="500ms")
        await accept(served, 3)
        await hop_out(dsn)
        report = await examined(environ)
    assert causes(report) == {Cause.CONNECT_TIMED_OUT}, told(report)


async def test_what_is_over_is_not_named(deployed, dsn, next_hop, port_of):
    """A next hop that was out and delivers again has no incident any more."""
    async with scripted_peer(greeting=[b"421 4.3.2 later\r\n"] * 3 + [b"220 peer.test\r\n"]) as peer:
        served, environ = await deployed(peer.port)
        (delivery_id,) = await accept(served)
        await served.settled(delivery_id, "sent")
        await until_row(dsn, "SELECT FROM mail.replicas WHERE hops_out = '{}'")
        report = await examined(environ)
    assert causes(report) == set(), told(report)


# -- malformed ---------------------------------------------------------------------------------------------------------

GOOD = {"source": "notification", "payload_mode": "rendered"}
PAYLOAD = {"to": ["ann@example.org"], "subject": "Hello", "text": "It works."}
TEMPLATE = {"to": ["ann@example.org"], "template_id": "welcome", "locale": "en", "variables": {}}
BAD = {
    Cause.FIELD_RENAMED: {**GOOD, "payload": {"to": ["ann@example.org"], "title": "Hello", "text": "x"}},
    Cause.FIELD_MISSING: {**GOOD, "payload": {"to": ["ann@example.org"], "text": "x"}},
    Cause.FIELD_UNKNOWN: {**GOOD, "payload": PAYLOAD, "priority": "high"},
    Cause.TEMPLATE_UNKNOWN: {
        **GOOD,
        "payload_mode": "template",
        "payload": TEMPLATE | {"template_id": "no-such"},
    },
    Cause.LOCALE_INVALID: {**GOOD, "payload_mode": "template", "payload": TEMPLATE | {"locale": "pt_BR"}},
    Cause.VARIABLE_MISSING: {**GOOD, "payload_mode": "template", "payload": TEMPLATE},
    Cause.ADDRESS_INVALID: {**GOOD, "payload": PAYLOAD | {"to": ["ann at example.org"]}},
    Cause.DOMAIN_RESERVED: {**GOOD, "payload": PAYLOAD | {"to": ["ann@mail.invalid"]}},
}


async def test_producers_are_told_apart_by_what_is_wrong(deployed, dsn, port_of):
    """Each malformed command alone names its own cause, with its producer, failure code and field."""
    _, environ = await deployed(port_of)
    for cause, bad in BAD.items():
        await query(dsn, "SELECT mail.enqueue($1::jsonb)", json.dumps(bad))
        await until_row(dsn, "SELECT FROM mail.malformed_commands")
        report = await examined(environ)
        assert causes(report) == {cause}, told(report)
        assert severities(report) == {Incident.MALFORMED: Severity.WARNING}
        assert "notification, by sql: 1 command" in told(report)
        assert "mailkeep" in told(report)
        assert "ann@" not in told(report)
        await query(dsn, "DELETE FROM mail.malformed_commands")


async def test_a_producer_of_the_stream_that_renamed_a_field(deployed, dsn, port_of, tmp_path):
    """An entry with an unknown field instead of a required one is told as a renaming, with both names."""
    valkey = Valkey(tmp_path / "valkey").start()
    try:
        served, environ = await deployed(port_of, MAIL_REDIS_MASTER_ADDR=str(valkey.socket))
        add(valkey, fields(payload_mode=None, mode="rendered"))
        await until_row(dsn, "SELECT FROM mail.malformed_commands")
        report = await examined(environ)
    finally:
        await served.service.stop()
        valkey.stop()
    assert causes(report) == {Cause.FIELD_RENAMED}
    assert "mode is sent, payload_mode is missing" in told(report)
