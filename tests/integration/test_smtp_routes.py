"""What a route can ask for, against real servers: ways to log in, failover, pins, client certificates, limits."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import ssl
import sys
import time

import msgspec
import pytest
from smtp_servers import (
    PASSWORD,
    USERNAME,
    Act,
    Certificates,
    Inbox,
    OpenFence,
    aiosmtpd_server,
    free_port,
    hop_to,
    login_checker,
    mail,
    on_both_loops,
    pool_of,
    scripted_peer,
    send,
)

from mailkeep.core.outcome import Phase, Scope, Severity
from mailkeep.smtp.next_hop import HopAddress, TlsMode
from mailkeep.smtp.token import MAX_TOKEN_BYTES

GREETS_NOBODY = b"554 5.3.2 no service\r\n"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority for the whole module."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


def at(*ports, priority=False):
    """Addresses on loopback, of falling priority if asked for."""
    return tuple(
        HopAddress("127.0.0.1", port, 10 * place if priority else 0) for place, port in enumerate(ports)
    )


def connects(outcome):
    """What the transcript says of each connection."""
    return [step.reply for step in outcome.steps if step.phase is Phase.CONNECT]


# -- ways to log in ----------------------------------------------------------------------------------------------------


class Doors(Inbox):
    """An inbox behind CRAM-MD5 and the two ways of OAuth 2.0, as aiosmtpd lets a handler add them."""

    def __init__(self, *tokens):
        super().__init__()
        self.tokens = list(tokens)
        self.logins = []

    async def _decide(self, mechanism, right):
        from aiosmtpd.smtp import AuthResult

        self.logins.append((mechanism, right))
        return AuthResult(success=right, handled=False)

    async def auth_CRAM__MD5(self, server, args):
        challenge = b"<1.2@aiosmtpd.test>"
        name, digest = (await server.challenge_auth(challenge)).split()
        wanted = hmac.digest(PASSWORD.encode(), challenge, "md5").hex().encode()
        return await self._decide("CRAM-MD5", (name, digest) == (USERNAME.encode(), wanted))

    async def auth_XOAUTH2(self, server, args):
        return await self._bearer(server, args, "user={user}\1auth=Bearer {token}\1\1", b"")

    async def auth_OAUTHBEARER(self, server, args):
        port = server.transport.get_extra_info("sockname")[1]
        form = f"n,a={{user}},\1host=localhost\1port={port}\1auth=Bearer {{token}}\1\1"
        return await self._bearer(server, args, form, b"\1")

    async def _bearer(self, server, args, form, after_refusal):
        import base64

        said = base64.b64decode(args[1]).decode()
        right = said in [form.format(user=USERNAME, token=token) for token in self.tokens]
        if not right:
            assert await server.challenge_auth(b'{"status":"401"}') == after_refusal
        return await self._decide(args[0], right)


def doors_hop(port, certificates, **changes):
    """A next hop over verified TLS."""
    changes = {"username": USERNAME, "tls": TlsMode.IMPLICIT, "ca_file": certificates.ca_file} | changes
    return hop_to(port, host="localhost", **changes)


@contextlib.contextmanager
def doors(certificates, *tokens, only=()):
    """A server with those ways to log in, and its handler."""
    handler = Doors(*tokens)
    others = {"PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER"} - set(only)
    with aiosmtpd_server(
        handler,
        implicit_tls=certificates.server_context("localhost"),
        auth_require_tls=False,
        auth_exclude_mechanism=others,
        authenticator=login_checker(),
    ) as port:
        yield port, handler


def printing(tmp_path, *tokens):
    """A command that prints the first token at its first run, and so on; the last one from then on."""
    script = tmp_path / "print_token.py"
    runs = tmp_path / "runs"
    script.write_text(
        f"import pathlib\nruns = pathlib.Path({str(runs)!r})\n"
        "count = len(runs.read_text()) if runs.exists() else 0\n"
        f"runs.write_text('.' * (count + 1))\nprint({tokens!r}[min(count, {len(tokens) - 1})])\n"
    )
    return (sys.executable, "-I", str(script)), lambda: len(runs.read_text())


@on_both_loops
async def test_cram_md5(certificates):
    """Where nothing else is offered; a wrong password is refused as with any other way."""
    with doors(certificates, only=["CRAM-MD5"]) as (port, handler):
        assert (await send(doors_hop(port, certificates, password=PASSWORD))).severity is Severity.SUCCESS
        refused = await send(doors_hop(port, certificates, password="wrong"))
    assert handler.logins == [("CRAM-MD5", True), ("CRAM-MD5", False)]
    assert (refused.rule, refused.scope) == ("login_refused", Scope.CREDENTIAL)
    assert PASSWORD not in str(refused.steps)


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
@on_both_loops
async def test_a_token_of_a_command(certificates, mechanism, tmp_path):
    """It is run once for all connections, and the transcript shows nothing of what it printed."""
    command, runs = printing(tmp_path, "canary-token")
    with doors(certificates, "canary-token", only=[mechanism]) as (port, handler):
        hop = doors_hop(port, certificates, token_command=command)
        async with pool_of(hop) as pool:
            outcomes = await asyncio.gather(*(pool.send(hop, mail(), OpenFence()) for _ in range(3)))
    assert {outcome.severity for outcome in outcomes} == {Severity.SUCCESS}
    assert (handler.logins, runs()) == ([(mechanism, True)] * 3, 1)
    assert "canary" not in str(outcomes)


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
async def test_a_refused_token_is_replaced_once_in_the_same_attempt(certificates, mechanism, tmp_path):
    """A token that ran out costs no attempt; one that is refused fresh is not fetched again and again."""
    command, runs = printing(tmp_path, "old", "new")
    with doors(certificates, "old", only=[mechanism]) as (port, handler):
        hop = doors_hop(port, certificates, token_command=command, messages_per_connection=1)
        async with pool_of(hop) as pool:
            assert (await pool.send(hop, mail(), OpenFence())).severity is Severity.SUCCESS
            handler.tokens[:] = ["new"]
            assert (await pool.send(hop, mail(), OpenFence())).severity is Severity.SUCCESS
            assert ([right for _, right in handler.logins], runs()) == ([True, False, True], 2)
            handler.tokens.clear()
            refused = await pool.send(hop, mail(), OpenFence())
            assert (refused.rule, refused.code, runs()) == ("login_refused", 535, 3)
        assert (await send(hop)).rule == "login_refused"  # a new process: its first token is fresh
        assert (len(handler.logins), runs()) == (6, 4)


async def test_a_token_is_fetched_anew_after_its_time(certificates, tmp_path):
    """`token_ttl`, on the clock of the process."""
    command, runs = printing(tmp_path, "one", "two")
    with doors(certificates, "one", "two", only=["XOAUTH2"]) as (port, _):
        changes = {"token_command": command, "messages_per_connection": 1}
        for ttl_s, expected in ((0.001, 2), (300.0, 1)):
            hop = doors_hop(port, certificates, **changes, token_ttl_s=ttl_s)
            before = runs() if (tmp_path / "runs").exists() else 0
            async with pool_of(hop) as pool:
                for _ in range(2):
                    assert (await pool.send(hop, mail(), OpenFence())).severity is Severity.SUCCESS
            assert runs() - before == expected


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("import sys; print('canary'); sys.exit(3)", "ended with 3"),
        ("pass", "printed no token"),
        ("print('canary one'); print('canary two')", "printed no token"),
        ("print('canary' + chr(252))", "printed no token"),
        (f"print('x' * {MAX_TOKEN_BYTES + 1})", "printed no token"),
        ("while True: print('canary' * 1000)", "printed no token"),
        ("import time; time.sleep(60)", "took longer"),
        (
            "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])",
            "took longer",
        ),
        (None, "can't be run"),
    ],
)
@on_both_loops
async def test_a_command_that_gives_no_token_is_a_failure_of_the_credential(script, why):
    """Whatever it does, the attempt ends in time, nobody is connected to, and nothing of its output is kept."""
    command = (sys.executable, "-I", "-c", script) if script else ("/nowhere/print-token",)
    patience_s = 2.0 if why == "took longer" else 60.0
    hop = hop_to(free_port(), username=USERNAME, token_command=command, timers={"auth_s": patience_s})
    outcome = await send(hop)
    assert why in outcome.text
    assert (outcome.scope, outcome.phase, outcome.rule) == (Scope.CREDENTIAL, Phase.AUTH, "no_token")
    assert (outcome.steps, "canary" in str(outcome)) == ((), False)


async def test_who_waits_for_a_run_that_fails_shares_its_failure(tmp_path):
    """Attempts at the same time do not run a broken command one after the other."""
    command, runs = printing(tmp_path, "no token")
    hop = hop_to(free_port(), username=USERNAME, token_command=command)
    async with pool_of(hop) as pool:
        outcomes = await asyncio.gather(*(pool.send(hop, mail(), OpenFence()) for _ in range(3)))
    assert ({outcome.rule for outcome in outcomes}, runs()) == ({"no_token"}, 1)


# -- several addresses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "greeting", [GREETS_NOBODY, b"421 4.3.2 busy\r\n", Act.CLOSE, Act.STALL, b"hello\r\n"]
)
@on_both_loops
async def test_an_address_that_does_not_greet_is_left_for_the_next(greeting):
    """In the same attempt, which succeeds; the next one does not ask there first."""
    async with scripted_peer(greeting=greeting) as bad, scripted_peer() as good:
        hop = hop_to(0, addresses=at(bad.port, good.port, priority=True), timers={"greeting_s": 0.5})
        hop = msgspec.structs.replace(hop, messages_per_connection=1)
        async with pool_of(hop) as pool:
            outcomes = [await pool.send(hop, mail(), OpenFence()) for _ in range(2)]
    assert [outcome.severity for outcome in outcomes] == [Severity.SUCCESS] * 2
    assert [len(connects(outcome)) for outcome in outcomes] == [2, 1]
    assert (len(bad.commands), len(good.commands)) == (1, 2)


async def test_an_address_that_refuses_connections_is_left_for_the_next():
    """The transcript shows both."""
    async with scripted_peer() as good:
        outcome = await send(hop_to(0, addresses=at(free_port(), good.port, priority=True)))
    assert outcome.severity is Severity.SUCCESS
    assert connects(outcome) == ["refused", "connected"]


async def test_a_name_without_an_address_is_left_for_the_next():
    """The look-up is part of the transcript when it fails."""
    async with scripted_peer() as good:
        addresses = (HopAddress("nowhere.invalid", 25), *at(0, good.port, priority=True)[1:])
        outcome = await send(hop_to(0, addresses=addresses))
    assert outcome.severity is Severity.SUCCESS
    assert outcome.steps[0].sent == "look up nowhere.invalid"


async def test_a_broken_tls_is_left_for_the_next(certificates):
    """A certificate of somebody else keeps one server of a hop from being used, not the hop."""
    bad, good = certificates.server_context("elsewhere.test"), certificates.server_context("localhost")
    with (
        aiosmtpd_server(Inbox(), implicit_tls=bad) as bad_port,
        aiosmtpd_server(Inbox(), implicit_tls=good) as good_port,
    ):
        addresses = (HopAddress("localhost", bad_port), HopAddress("localhost", good_port, 10))
        hop = hop_to(0, addresses=addresses, tls=TlsMode.IMPLICIT, ca_file=certificates.ca_file)
        assert (await send(hop)).severity is Severity.SUCCESS


async def test_a_server_that_stalls_at_the_login_is_left_for_the_next():
    """It says nothing of the login; the password is no secret to the other servers of the hop."""
    ehlo = b"250-peer.test\r\n250 AUTH PLAIN\r\n"
    async with scripted_peer(ehlo=ehlo, auth=Act.STALL) as bad, scripted_peer(ehlo=ehlo) as good:
        addresses = at(bad.port, good.port, priority=True)
        hop = hop_to(0, addresses=addresses, username=USERNAME, password=PASSWORD, timers={"auth_s": 0.3})
        assert (await send(hop)).severity is Severity.SUCCESS


async def test_a_refused_login_is_not_tried_elsewhere():
    """It would be refused there, too; some servers lock an account for it."""
    ehlo = b"250-peer.test\r\n250 AUTH PLAIN\r\n"
    async with scripted_peer(ehlo=ehlo, auth=b"535 5.7.8 no\r\n") as one, scripted_peer(ehlo=ehlo) as other:
        hop = hop_to(
            0, addresses=at(one.port, other.port, priority=True), username=USERNAME, password=PASSWORD
        )
        assert (await send(hop)).rule == "login_refused"
        assert (len(one.commands), len(other.commands)) == (1, 0)


async def test_a_refused_message_is_not_tried_elsewhere():
    """Failover is about servers; what one says of a message is its answer."""
    async with scripted_peer(mail=b"451 4.3.0 later\r\n") as one, scripted_peer() as other:
        await send(hop_to(0, addresses=at(one.port, other.port, priority=True)))
        assert len(other.commands) == 0


async def test_when_no_address_is_left_the_hop_is_out():
    """The outcome is an outage, as with a hop of one address, and no more than eight are asked in an attempt."""
    async with scripted_peer(greeting=GREETS_NOBODY) as peer:
        outcome = await send(hop_to(0, addresses=at(*[free_port()] * 10, peer.port, priority=True)))
    assert (outcome.scope, outcome.severity) == (Scope.NEXT_HOP, Severity.TRANSIENT)
    assert connects(outcome) == ["refused"] * 8


# -- who the server is, and who we are -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [TlsMode.STARTTLS, TlsMode.IMPLICIT])
@on_both_loops
async def test_a_pinned_certificate_needs_no_authority_and_no_name(certificates, tls, tmp_path):
    """The right one is taken with a login, any other is not spoken to, whoever signed it."""
    chain, key = certificates.write_pair(tmp_path, "elsewhere.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    certificate = ssl.PEM_cert_to_DER_cert(
        chain.read_text().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    )
    pin = hashlib.sha256(certificate).hexdigest()
    server = {"implicit_tls": context} if tls is TlsMode.IMPLICIT else {"tls_context": context}
    inbox = Inbox()
    with aiosmtpd_server(inbox, authenticator=login_checker(), auth_require_tls=False, **server) as port:
        options = {"tls": tls, "username": USERNAME, "password": PASSWORD}
        pinned = await send(hop_to(port, fingerprints=("ab" * 32, pin), **options))
        other = await send(
            hop_to(port, host="localhost", fingerprints=("ab" * 32,), ca_file=certificates.ca_file, **options)
        )
    assert (pinned.severity, inbox.messages[0].logged_in) == (Severity.SUCCESS, True)
    assert (other.phase, other.scope) == (Phase.TLS, Scope.NEXT_HOP)
    assert "not the pinned one" in other.text
    assert other.steps[-1].phase is not Phase.AUTH


@on_both_loops
async def test_a_client_certificate_is_shown(certificates, tmp_path):
    """A server that asks for one gets it; without it there is no session."""
    context = certificates.server_context("localhost")
    context.load_verify_locations(certificates.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    chain, key = certificates.write_pair(tmp_path, "client.test")
    with aiosmtpd_server(Inbox(), implicit_tls=context) as port:
        options = {"host": "localhost", "tls": TlsMode.IMPLICIT, "ca_file": certificates.ca_file}
        known = await send(hop_to(port, client_certificate=str(chain), client_key=str(key), **options))
        unknown = await send(hop_to(port, **options))
    assert known.severity is Severity.SUCCESS
    assert (unknown.scope, unknown.severity) == (Scope.NEXT_HOP, Severity.TRANSIENT)


async def test_an_unverified_server_gets_no_login_unless_told(certificates):
    """Off loopback; the scripted client sees a loopback peer, so the rule itself is a unit test's, the word is here."""
    with aiosmtpd_server(
        Inbox(),
        implicit_tls=certificates.server_context("elsewhere.test"),
        authenticator=login_checker(),
        auth_require_tls=False,
    ) as port:
        options = {"tls": TlsMode.IMPLICIT, "verify": False, "username": USERNAME, "password": PASSWORD}
        assert (await send(hop_to(port, auth_without_tls=True, **options))).severity is Severity.SUCCESS


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of Linux's loopback alone")
@on_both_loops
async def test_the_source_address_is_used():
    """The server sees it; one that this machine does not have is an outage that says so."""
    peers = []

    class Watching(Inbox):
        async def handle_MAIL(self, server, session, envelope, address, options):
            peers.append(session.peer[0])
            envelope.mail_from = address
            return "250 ok"

    with aiosmtpd_server(Watching()) as port:
        hop = hop_to(port, host="localhost", source_address="127.0.0.2")  # localhost may be ::1 as well
        assert (await send(hop)).severity is Severity.SUCCESS
        foreign = await send(hop_to(port, source_address="192.0.2.1"))
    assert peers == ["127.0.0.2"]
    assert (foreign.scope, foreign.phase) == (Scope.NEXT_HOP, Phase.CONNECT)
    assert os.strerror(99) in foreign.text or "unreachable" in foreign.text


async def test_a_connection_is_replaced_after_so_many_messages():
    """`messages_per_connection`, with QUIT."""
    async with scripted_peer() as peer:
        hop = hop_to(peer.port, max_connections=1, messages_per_connection=2)
        async with pool_of(hop) as pool:
            for _ in range(3):
                await pool.send(hop, mail(), OpenFence())
    assert [commands.count("MAIL") for commands in peer.commands] == [2, 1]


@on_both_loops
async def test_messages_leave_no_faster_than_the_rate():
    """Five at once at 20 a second: the fifth leaves a fifth of a second after the first."""
    began = []

    class Timing(OpenFence):
        def may_open_transaction(self):
            began.append(time.monotonic())
            return True

    async with scripted_peer() as peer:
        hop = hop_to(peer.port, messages_per_s=20.0)
        async with pool_of(hop) as pool:
            outcomes = await asyncio.gather(*(pool.send(hop, mail(), Timing()) for _ in range(5)))
    assert {outcome.severity for outcome in outcomes} == {Severity.SUCCESS}
    # The connection of the first may take a moment; what is bounded is the span of all.
    assert began[-1] - began[0] > 0.1


async def test_who_is_cancelled_while_waiting_for_a_turn_leaves_its_place():
    """A shutdown does not lose a place of the hop."""
    async with scripted_peer() as peer:
        hop = hop_to(peer.port, max_connections=1, messages_per_s=2.0)
        async with pool_of(hop) as pool:
            await pool.send(hop, mail(), OpenFence())
            waiting = asyncio.create_task(pool.send(hop, mail(), OpenFence()))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert (await pool.send(hop, mail(), OpenFence())).severity is Severity.SUCCESS


# -- mailkeep routes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def routes(tmp_path, monkeypatch):
    """Return a function that runs `mailkeep routes` over a routes file."""
    from typer.testing import CliRunner

    from mailkeep.cli import app

    for name in [name for name in os.environ if name.startswith("MAIL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    async def run(text, *arguments):
        file = tmp_path / "routes.toml"
        file.write_text(text)
        environ = {"MAIL_ROUTES_FILE": str(file), "ONE_PASSWORD": PASSWORD}
        return await asyncio.to_thread(CliRunner().invoke, app, ["routes", *arguments], env=environ)

    return run


async def test_routes_are_listed(routes):
    """One line a hop, and the same as JSON; no password in either."""
    text = """
    [hop.default]
    addresses = ["mx1.example.org:25", { addr = "mx2.example.org:25", priority = 10, weight = 3 }]
    username = "ann"
    password_env = "ONE_PASSWORD"
    messages_per_s = 0.5
    [hop.partner]
    domains = ["example.com", "*.example.com"]
    addresses = ["127.0.0.1:2525"]
    """
    shown = await routes(text)
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert shown.exit_code == 0
    assert rows[1] == [
        "default",
        "-",
        "all",
        "else",
        "starttls",
        "password",
        "15",
        "0.5",
        "mx1.example.org:25",
        "(0/1),",
        "mx2.example.org:25",
        "(10/3)",
    ]
    assert rows[2] == [
        "partner",
        "-",
        "example.com,",
        "*.example.com",
        "none",
        "-",
        "50",
        "-",
        "127.0.0.1:2525",
    ]
    described = json.loads((await routes(text, "--json")).stdout)
    assert [hop["domains"] for hop in described] == [[], ["example.com", "*.example.com"]]
    assert [hop["state"] for hop in described] == [None, None]  # there is no queue to ask
    assert PASSWORD not in str(described) + shown.output


async def test_routes_test_says_what_is_there(routes, certificates):
    """TLS, certificate, capabilities and login of each address; exit code 1 for one that can't be used; no mail."""
    inbox = Inbox()
    with aiosmtpd_server(
        inbox, tls_context=certificates.server_context("localhost"), authenticator=login_checker()
    ) as port:
        text = f"""
        [hop.default]
        addresses = ["localhost:{port}"]
        tls = "starttls"
        tls_ca_file = "{certificates.ca_file}"
        username = "{USERNAME}"
        password_env = "ONE_PASSWORD"
        [hop.gone]
        domains = ["example.com"]
        addresses = ["127.0.0.1:{free_port()}"]
        [hop.stranger]
        domains = ["example.net"]
        addresses = ["localhost:{port}"]
        tls = "starttls"
        tls_ca_file = "{certificates.ca_file}"
        username = "bob"
        password_env = "ONE_PASSWORD"
        """
        every = await routes(text, "test", "--json")
        one = await routes(text, "test", "default")
        nobody = await routes(text, "test", "nobody")
    well, gone, stranger = json.loads(every.stdout)
    assert (every.exit_code, one.exit_code, nobody.exit_code) == (1, 0, 1)
    assert (well["problem"], well["logged_in"], well["tls"]) == (None, True, "TLSv1.3")
    assert well["certificate"]["names"] == ["localhost"]
    assert well["certificate"]["expires"].endswith("GMT")
    assert {"SMTPUTF8", "AUTH LOGIN PLAIN"} <= set(well["capabilities"])
    assert gone["problem"] == "connect: connection refused"
    assert (stranger["logged_in"], stranger["problem"][:9]) == (False, "auth: 535")
    assert "certificate   localhost, until" in one.stdout
    assert "login         accepted" in one.stdout
    assert inbox.messages == []
    assert PASSWORD not in every.output + one.output


async def test_routes_test_of_a_pinned_server_shows_its_fingerprint(routes, certificates):
    """The fingerprint to pin, also where the pin is wrong or there is none."""
    with aiosmtpd_server(Inbox(), implicit_tls=certificates.server_context("elsewhere.test")) as port:
        lines = f'[hop.default]\naddresses = ["localhost:{port}"]\ntls = "implicit"\n'
        (lax,) = json.loads((await routes(f"{lines}tls_verify = false", "test", "--json")).stdout)
        pin = lax["certificate"]["fingerprint"]
        (pinned,) = json.loads(
            (await routes(f'{lines}tls_fingerprints = ["{pin}"]', "test", "--json")).stdout
        )
        wrong = await routes(f'{lines}tls_fingerprints = ["{"ab" * 32}"]', "test")
    assert (lax["problem"], pinned["problem"]) == (None, None)
    assert pinned["certificate"] == {"fingerprint": pin, "names": [], "expires": None}
    assert (wrong.exit_code, "not the pinned one" in wrong.stdout) == (1, True)
