"""Mutual TLS of the internal listener: whose certificate may call, over raw handshakes, the clients and the commands."""

import asyncio
import contextlib
import os
import ssl
import warnings
from pathlib import Path

import pytest
import trustme
from typer.testing import CliRunner

from mailkeep.cli import app
from mailkeep.client import AsyncClient, Client, Mail, RejectedError, UnavailableError
from mailkeep.intake import listener as listener_module
from mailkeep.intake.listener import HttpListener
from mailkeep.intake.listener_tls import ListenerTls
from mailkeep.settings import Settings
from mailkeep.wiring import Service

TOKEN = "a-token-long-enough"
MAIL = Mail(to="ann@example.org", subject="Hello", text="It works.")
PATIENCE_S = 60.0


class Papers:
    """Certificates on disk: an authority, a server, clients by their name, and a stranger of another authority."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = str(folder / "ca.pem")
        self.authority.cert_pem.write_to_path(self.ca)
        self.server = self.issue("server", "localhost", "127.0.0.1")
        self.stranger = self.issue("stranger", "orders.internal", authority=trustme.CA())

    def issue(self, file, *names, authority=None):
        """Write a certificate with its key to one file."""
        path = self.folder / f"{file}.pem"
        path.unlink(missing_ok=True)
        (authority or self.authority).issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(
            str(path)
        )
        return str(path)

    def context(self, client=None):
        """Return what a client connects with."""
        context = ssl.create_default_context(cafile=self.ca)
        if client:
            context.load_cert_chain(client)
        return context

    def environ(self, **more):
        """Settings of a listener that wants the certificate of `orders.internal`."""
        return {
            "MAIL_INTERNAL_HTTP_TLS_CERT": self.server,
            "MAIL_INTERNAL_HTTP_TLS_CLIENT_CA": self.ca,
            "MAIL_INTERNAL_HTTP_TLS_CLIENT_NAMES": "dns:orders.internal, uri:spiffe://example.org/orders",
            **more,
        }


@pytest.fixture
def papers(tmp_path):
    """Certificates of this test."""
    return Papers(tmp_path)


@pytest.fixture
async def service(dsn):
    """Yield a function that starts a service in stub mode."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**environ):
            base = {
                "MAIL_POSTGRES_DSN": dsn,
                "MAIL_INTERNAL_HTTP_ADDR": "127.0.0.1:0",
                "MAIL_SMTP_MODE": "stub",
                "MAIL_SHUTDOWN_TIMEOUT": "6s",
            }
            started = await Service.start(Settings.load(base | environ))
            stack.push_async_callback(started.stop)
            return started

        yield start


def client(service, context, **options):
    """Return a client of `service` that tries once."""
    url = f"https://localhost:{service.http_address.port}"
    return AsyncClient(url, tls=context, deadline_s=0, **options)


async def test_only_a_wanted_certificate_may_call(service, papers):
    """A client with a wanted name is served; none, a stranger's and another name's certificate are not; nor is plain HTTP."""
    serving = await service(**papers.environ())
    wanted = papers.context(papers.issue("orders", "orders.internal"))
    async with client(serving, wanted) as calling:
        assert (await calling.send(MAIL)).delivery_id
    for unwanted in (papers.context(), papers.context(papers.stranger)):
        async with client(serving, unwanted) as calling:
            with pytest.raises(UnavailableError):
                await calling.send(MAIL)
    async with client(serving, papers.context(papers.issue("other", "other.internal"))) as calling:
        with pytest.raises(RejectedError) as refused:
            await calling.send(MAIL)
    assert refused.value.status == 403
    with pytest.raises(UnavailableError):
        await asyncio.to_thread(Client(f"http://{serving.http_address}", deadline_s=0).send, MAIL)


async def test_a_token_is_asked_for_as_well_where_there_are_any(service, papers):
    """Over TLS tokens guard as they do without it, also for the client of threads."""
    serving = await service(**papers.environ(MAIL_INTERNAL_HTTP_TOKENS=TOKEN))
    wanted = papers.context(papers.issue("orders", "orders.internal"))
    async with client(serving, wanted) as calling:
        with pytest.raises(RejectedError) as refused:
            await calling.send(MAIL)
    assert refused.value.status == 401
    url = f"https://localhost:{serving.http_address.port}"
    with Client(url, tls=wanted, token=TOKEN, deadline_s=0) as calling:
        assert (await asyncio.to_thread(calling.send, MAIL)).delivery_id


async def test_old_tls_is_refused(service, papers):
    """TLS 1.2 is the least that is spoken (RFC 8996)."""
    serving = await service(MAIL_INTERNAL_HTTP_TLS_CERT=papers.server)
    context = papers.context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError):  # an alert, or a reset
        await asyncio.open_connection("localhost", serving.http_address.port, ssl=context)
    context = papers.context()
    _, writer = await asyncio.open_connection("localhost", serving.http_address.port, ssl=context)
    assert writer.get_extra_info("cipher")[1] in {"TLSv1.2", "TLSv1.3"}
    writer.close()


async def test_a_handshake_that_does_not_come_is_cut(papers, monkeypatch):
    """Silence in place of a handshake, and a client that stops in the middle of one, end after the bound."""
    monkeypatch.setattr(listener_module, "HANDSHAKE_TIMEOUT_S", 0.5)
    listener = HttpListener(None, "127.0.0.1", 0, tls=ListenerTls(Path(papers.server)))
    await listener.start()
    for begun in (b"", b"\x16\x03\x01\x02\x00\x01"):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(begun)
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.read() == b""
        writer.close()
    await listener.stop(1)


async def test_a_renewed_certificate_is_used_for_new_connections(service, papers, monkeypatch, log_lines):
    """A certificate that changes in its file is taken by itself; half a pair changes nothing and is told."""
    monkeypatch.setattr(listener_module, "LOOK_EVERY_S", 0.0)
    serving = await service(MAIL_INTERNAL_HTTP_TLS_CERT=papers.server)

    async def serial():
        _, writer = await asyncio.open_connection(
            "localhost", serving.http_address.port, ssl=papers.context()
        )
        number = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        return number

    async def said(event):
        async with asyncio.timeout(PATIENCE_S):
            while event not in {line["event"] for line in log_lines}:
                await asyncio.sleep(0.05)

    first = await serial()
    papers.issue("server", "localhost", "127.0.0.1")
    await said("certificate renewed")
    second = await serial()
    assert second != first
    (papers.folder / "server.pem").write_text("-----BEGIN CERTIFICATE-----\nhalf of it")
    await said("the renewed certificate can't be used")
    assert await serial() == second


@pytest.mark.parametrize(
    "command", [["healthcheck"], ["send", "--to", "ann@example.org", "--subject", "x", "--text", "y"]]
)
async def test_commands_speak_tls_to_their_own_listener(service, papers, command, monkeypatch):
    """`healthcheck` and `send` trust the configured certificate alone, show their own, and say what is missing."""
    for name in [name for name in os.environ if name.startswith("MAIL_")]:
        monkeypatch.delenv(name)
    serving = await service(**papers.environ())
    environ = papers.environ(MAIL_INTERNAL_HTTP_ADDR=str(serving.http_address))
    shown = {"MAIL_INTERNAL_HTTP_CLIENT_CERT": papers.issue("orders", "orders.internal")}
    run = CliRunner().invoke

    done = await asyncio.to_thread(run, app, command, env=environ | shown)
    assert done.exit_code == 0, done.output
    done = await asyncio.to_thread(run, app, command, env=environ)
    assert done.exit_code != 0
    if command == ["healthcheck"]:
        assert "MAIL_INTERNAL_HTTP_CLIENT_CERT" in done.output
    other = {"MAIL_INTERNAL_HTTP_TLS_CERT": papers.issue("impostor", "localhost", "127.0.0.1")}
    done = await asyncio.to_thread(run, app, command, env=environ | shown | other)
    assert done.exit_code != 0


def test_names_are_those_of_the_certificate_alone():
    """A DNS name counts in any letter case, a URI as it is written; another kind of the same text does not."""
    tls = ListenerTls.__new__(ListenerTls)
    tls._client_names = frozenset({"dns:orders.internal", "uri:spiffe://example.org/orders"})
    assert tls.may_call({"subjectAltName": (("DNS", "Orders.Internal"),)})
    assert tls.may_call({"subjectAltName": (("URI", "spiffe://example.org/orders"),)})
    assert not tls.may_call({"subjectAltName": (("URI", "orders.internal"), ("email", "orders.internal"))})
    assert not tls.may_call({"subject": ((("commonName", "orders.internal"),),)})
    assert not tls.may_call(None)


def test_the_listener_is_reachable_for_others_only_behind_some_lock(tmp_path, papers):
    """Client certificates stand for tokens off loopback; TLS alone does not; contradictions are told."""
    off = {"MAIL_INTERNAL_HTTP_ADDR": "0.0.0.0:8080"}
    assert Settings.load(off | papers.environ()).internal_http_tls_client_ca
    for wrong, name in (
        ({"MAIL_INTERNAL_HTTP_TLS_CERT": papers.server}, "MAIL_INTERNAL_HTTP_TOKENS"),
        (papers.environ(MAIL_INTERNAL_HTTP_AUTH="tokens"), "MAIL_INTERNAL_HTTP_TOKENS"),
        (papers.environ(MAIL_INTERNAL_HTTP_AUTH="none"), "MAIL_INTERNAL_HTTP_AUTH"),
        (papers.environ(MAIL_INTERNAL_HTTP_TLS_CERT=papers.ca), "MAIL_INTERNAL_HTTP_TLS_CERT"),
        (papers.environ(MAIL_INTERNAL_HTTP_TLS_CERT=""), "MAIL_INTERNAL_HTTP_TLS_CERT"),
        (papers.environ(MAIL_INTERNAL_HTTP_TLS_CLIENT_CA=""), "MAIL_INTERNAL_HTTP_TLS_CLIENT_NAMES"),
        (papers.environ(MAIL_INTERNAL_HTTP_TLS_CLIENT_NAMES="orders"), "MAIL_INTERNAL_HTTP_TLS_CLIENT_NAMES"),
        (papers.environ(MAIL_INTERNAL_HTTP_CLIENT_KEY=papers.server), "MAIL_INTERNAL_HTTP_CLIENT_CERT"),
    ):
        with pytest.raises(ValueError) as caught:
            Settings.load(off | wrong)
        assert name in {problem.name for problem in caught.value.problems}, wrong
