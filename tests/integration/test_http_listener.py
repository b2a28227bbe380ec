"""The listener over raw sockets: what a peer does wrong, or too slowly, costs its own connection and nothing else."""

import asyncio
import contextlib
import errno
import json
import os
import resource
import socket
import ssl
import time

import httpx2
import pytest
import trustme
from http_kit import DELIVERIES, command

from mailkeep.intake import listener as listener_module
from mailkeep.intake.listener import BACKLOG, MAX_HEAD_BYTES, HttpListener
from mailkeep.intake.listener_tls import ListenerTls
from mailkeep.listening import listen

HOST = "127.0.0.1"
REQUEST_TIMEOUT_S = 0.6
PATIENCE_S = 60.0
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def read_body(receive):
    """Return a request's body, None if its sender left."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return body


class App:
    """Answers each request with its body; `/large` with more than a socket holds; `/wait` once it is let go."""

    def __init__(self):
        self.gone = 0
        self.let_go = asyncio.Event()

    async def __call__(self, scope, receive, send):
        body = await read_body(receive)
        if body is None:
            self.gone += 1
            return
        if scope["path"] == "/wait":
            await self.let_go.wait()
        if scope["path"] == "/large":
            body = bytes(64 * 1024 * 1024)
        head = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"%d" % len(body))],
        }
        if scope["path"] == "/late":
            head["headers"] = [(b"content-length", b"4")]
        await send(head)
        if scope["path"] == "/late":
            await self.let_go.wait()
            body = b"late"
        await send({"type": "http.response.body", "body": body})


def connections(listener):
    """Return how many connections a listener has."""
    return len(listener._server.server_state.connections)


@pytest.fixture
def app():
    """The application that is served."""
    return App()


@pytest.fixture
async def listening(app):
    """Run a listener that is impatient with slow requests."""
    listener = HttpListener(app, HOST, 0, request_timeout_s=REQUEST_TIMEOUT_S)
    await listener.start()
    yield listener
    await listener.stop(5)


@contextlib.asynccontextmanager
async def connected(listener):
    """Yield a connection to the listener."""
    reader, writer = await asyncio.open_connection(HOST, listener.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def rest(reader):
    """Return what still comes until the connection is closed or reset."""
    got = b""
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                got += piece
    return got


async def answers(listener):
    """Check that the listener answers another connection now."""
    async with connected(listener) as (reader, writer):
        writer.write(REQUEST)
        async with asyncio.timeout(PATIENCE_S):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_port_in_use_is_one_clear_error(app, listening):
    """A second listener on the same port raises OSError and leaves the first at work."""
    second = HttpListener(app, HOST, listening.port)
    with pytest.raises(OSError) as caught:
        await second.start()
    assert caught.value.errno == errno.EADDRINUSE
    await answers(listening)


async def test_who_shares_a_socket_shares_its_connections(app):
    """Clients that all come at once and keep their connections are served by all processes, not by whichever woke first."""
    bound = listen(HOST, 0, backlog=BACKLOG)
    clients = [socket.create_connection(bound.getsockname()) for _ in range(20)]
    listeners = [HttpListener(app, HOST, 0, listening=bound.dup()) for _ in range(2)]
    for listener in listeners:
        await listener.start()
    async with asyncio.timeout(PATIENCE_S):
        while sum(map(connections, listeners)) < len(clients):
            await asyncio.sleep(0.01)
    assert min(map(connections, listeners)) >= 5
    for held in (*clients, bound):
        held.close()
    for listener in listeners:
        await listener.stop(1)


async def test_out_of_file_descriptors_is_waited_out(app, listening):
    """Who can't be accepted for want of descriptors waits, at no cost to the loop, and is served when there are some again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    client = socket.socket()
    client.settimeout(PATIENCE_S)
    lowest_free = os.dup(client.fileno())
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        client.connect((HOST, listening.port))
        client.sendall(REQUEST)
        spent_s = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - spent_s < 0.15
        assert connections(listening) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (await asyncio.to_thread(client.recv, 65536)).startswith(b"HTTP/1.1 200")
    client.close()


async def test_the_head_of_an_answer_waits_for_its_body_alone(app, listening):
    """A body that is late holds nothing back."""
    async with connected(listening) as (reader, writer):
        writer.write(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"content-length: 4" in head
            app.let_go.set()
            assert await reader.readexactly(4) == b"late"


async def test_processes_may_share_one_bound_socket(app):
    """A listener serves on a socket that was bound before, as the processes of one service do."""
    bound = listen("localhost", 0, backlog=BACKLOG)
    port = bound.getsockname()[1]
    first = HttpListener(app, HOST, 0, listening=bound.dup())
    second = HttpListener(app, HOST, 0, listening=bound)
    await first.start()
    await second.start()
    assert first.port == second.port == port
    await first.stop(1)
    await answers(second)
    await second.stop(1)


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n123",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123",
        REQUEST + b"GET / HTTP/1.1\r\n",
    ],
)
async def test_a_request_that_does_not_come_whole_is_cut(listening, begun):
    """Slow loris: silence, a dripping head or a dripping body ends after the bound; others are answered meanwhile."""
    async with connected(listening) as (reader, writer):
        writer.write(begun)
        dripping = asyncio.create_task(drip(writer))
        await answers(listening)
        got = await rest(reader)
        dripping.cancel()
    assert got.count(b"HTTP/1.1 200") == begun.count(REQUEST)
    await answers(listening)


async def drip(writer):
    """Send a byte now and then."""
    while True:
        await asyncio.sleep(REQUEST_TIMEOUT_S / 5)
        writer.write(b"1")


async def test_a_body_that_is_cut_short_is_told_to_the_application(app, listening):
    """A sender that leaves in the middle of a body is gone for the application too."""
    async with connected(listening) as (_, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n123")
        await writer.drain()
    async with asyncio.timeout(PATIENCE_S):
        while not app.gone:
            await asyncio.sleep(0.01)


async def test_a_peer_that_does_not_take_its_answer_is_cut(listening):
    """An answer that nobody reads does not hold its connection for ever."""
    async with connected(listening) as (reader, writer):
        reader._transport.pause_reading()
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            while not listening._connections():
                await asyncio.sleep(0.01)
            while listening._connections():
                await asyncio.sleep(0.05)


async def test_an_idle_connection_is_kept(listening):
    """Between requests a connection may rest longer than a request may take."""
    async with connected(listening) as (reader, writer):
        for _ in range(2):
            writer.write(REQUEST)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(REQUEST_TIMEOUT_S * 1.5)


async def test_a_head_without_end_is_refused(listening):
    """A head that outgrows its bound is a 431, and the connection is closed."""
    async with connected(listening) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ")
        for _ in range(2):
            writer.write(b"x" * (MAX_HEAD_BYTES * 2 // 3))
            await writer.drain()
            await asyncio.sleep(0.05)
        assert (await rest(reader)).startswith(b"HTTP/1.1 431")
    await answers(listening)


@pytest.mark.parametrize("endless", [b"5;extension=" + b"x" * 65536, b"0\r\n" + b"X-Trailer: x\r\n" * 5000])
async def test_framing_without_end_is_cut(listening, endless):
    """Chunk extensions and trailers are bounded like a head."""
    async with connected(listening) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + endless)
        sending = asyncio.create_task(keep_sending(writer, endless[-65536:]))
        assert b"200" not in await rest(reader)
        sending.cancel()
    await answers(listening)


async def keep_sending(writer, piece):
    """Send `piece` again and again."""
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(piece)
            await writer.drain()


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
        b"Content-Length: 6\r\nContent-Length: 5\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Content-Length: +6\r\n",
        b"Content-Length : 6\r\n",
    ],
)
async def test_ambiguous_framing_gets_one_refusal(listening, headers):
    """Request smuggling: where length and coding disagree there is one reply, an error, and no second request."""
    smuggled = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    async with connected(listening) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n" + smuggled)
        got = await rest(reader)
    assert got.count(b"HTTP/1.1 ") == 1
    assert got.startswith(b"HTTP/1.1 400")


async def test_pipelined_requests_are_answered_in_order(listening):
    """Several requests in one write get one reply each, in order."""
    async with connected(listening) as (reader, writer):
        for body in (b"one", b"two"):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n" + body)
        writer.write(REQUEST.replace(b"Host", b"Connection: close\r\nHost"))
        got = await rest(reader)
    assert got.count(b"HTTP/1.1 200") == 3
    assert got.index(b"one") < got.index(b"two")


async def test_connections_are_counted(app, monkeypatch):
    """Beyond the bound new connections are closed at once, and those that are there go on."""
    monkeypatch.setattr(listener_module, "MAX_CONNECTIONS", 3)
    listener = HttpListener(app, HOST, 0)
    await listener.start()
    async with contextlib.AsyncExitStack() as stack:
        kept = [await stack.enter_async_context(connected(listener)) for _ in range(3)]
        reader, _ = await stack.enter_async_context(connected(listener))
        assert await rest(reader) == b""
        for reader, writer in kept:
            writer.write(REQUEST)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await listener.stop(1)


async def test_two_hundred_idle_connections_hinder_nobody(served):
    """With 200 silent connections open, a command is taken as usual."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(200):
            await stack.enter_async_context(connected(served))
        assert (await served.post(DELIVERIES, command())).status_code == 202


async def test_a_stop_lets_a_request_finish(app, listening):
    """Stopping takes no new connection, and waits for the answer that is due."""
    async with connected(listening) as (reader, writer):
        writer.write(REQUEST.replace(b" / ", b" /wait "))
        await asyncio.sleep(0.1)
        port = listening.port
        stopping = asyncio.create_task(listening.stop(PATIENCE_S))
        await asyncio.sleep(0.2)
        with pytest.raises(OSError):
            await asyncio.open_connection(HOST, port)
        assert not stopping.done()
        app.let_go.set()
        assert (await rest(reader)).startswith(b"HTTP/1.1 200")
        await stopping


async def test_a_stop_cuts_what_takes_too_long(listening):
    """After its time a stop ends whatever is still open."""
    async with connected(listening) as (reader, writer):
        writer.write(REQUEST.replace(b" / ", b" /wait "))
        await asyncio.sleep(0.1)
        async with asyncio.timeout(PATIENCE_S):
            await listening.stop(0.3)
        assert await rest(reader) == b""


async def test_tls_is_spoken_where_it_is_given(app, tmp_path):
    """With a TLS context the listener speaks HTTPS only."""
    authority, client = trustme.CA(), ssl.create_default_context()
    certificate = tmp_path / "server.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    authority.configure_trust(client)
    listener = HttpListener(app, HOST, 0, tls=ListenerTls(certificate))
    await listener.start()
    async with httpx2.AsyncClient(verify=client) as calling:
        answer = await calling.post(f"https://localhost:{listener.port}/", content=b"secret")
        assert answer.content == b"secret"
        with pytest.raises(httpx2.TransportError):
            await calling.get(f"http://localhost:{listener.port}/")
    await listener.stop(1)


async def test_a_sender_that_leaves_half_way_leaves_no_trace(served, capsys):
    """A command whose sender leaves is not taken, and is no fault of the service."""
    body = json.dumps(command()).encode()
    head = f"POST {DELIVERIES} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    async with connected(served) as (_, writer):
        writer.write(head.encode() + b"\r\n\r\n" + body[:-1])
        await writer.drain()
    assert (await served.get(DELIVERIES)).json()["deliveries"] == []
    assert "fault" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "192.0.2.1", "[2001:db8::1]"]
)
async def test_no_page_of_another_site_is_answered_by_its_own_name(serve, host):
    """Without tokens, what a browser sends to a name that was led here is refused, to read and to send alike (DNS rebinding)."""
    served = await serve()
    names = {"host": host, "origin": f"http://{host}"}
    taken = await served.post(DELIVERIES, command(), **names)
    read = await served.client.get(DELIVERIES, headers=names)
    assert {(each.status_code, each.json()["code"]) for each in (taken, read)} == {(421, "misdirected")}
    for ours in ("localhost", "localhost:8080", "127.0.0.1", "127.0.0.2:1", "[::1]:8080"):
        assert (await served.client.get(DELIVERIES, headers={"host": ours})).status_code == 200
    assert (await served.get(DELIVERIES)).json()["deliveries"] == []


@pytest.mark.parametrize(
    "known", [{"MAIL_INTERNAL_HTTP_TOKENS": "a-token-long-enough"}, {"MAIL_INTERNAL_HTTP_AUTH": "none"}]
)
async def test_who_is_known_otherwise_may_use_any_name(serve, known):
    """With tokens a proxy may keep its Host, and so where everybody was let in on purpose."""
    served = await serve(**known)
    token = known.get("MAIL_INTERNAL_HTTP_TOKENS", "none")
    headers = {"host": "mail.example.org", "authorization": f"Bearer {token}"}
    assert (await served.client.get(DELIVERIES, headers=headers)).status_code == 200
