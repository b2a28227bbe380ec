"""One connection against a blocking socket: what arrives at the very moment when it must not be overlooked."""

import asyncio
import contextlib
import socket
import struct

import pytest
from smtp_servers import MESSAGE, Certificates, OpenFence, hop_to, on_both_loops

from mailkeep.core.outcome import Phase
from mailkeep.smtp.classify import FailureKind
from mailkeep.smtp.connect import connect
from mailkeep.smtp.dialog import DATA, GREETING, Ask
from mailkeep.smtp.lookup import Lookups
from mailkeep.smtp.next_hop import TlsMode
from mailkeep.smtp.session import SessionBrokenError
from mailkeep.smtp.tls import tls_context

MAIL = Ask(Phase.MAIL, b"MAIL FROM:<>\r\n", "MAIL FROM:<…>")
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@contextlib.asynccontextmanager
async def connected(**changes):
    """A session, and the blocking socket at its other end: what that sends is in the kernel before the loop runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hop = hop_to(listener.getsockname()[1], **changes)
        (place,) = await Lookups(hop.timers.connect_s, hop.source_address).places(hop.addresses[0])
        session = await connect(hop, place, tls_context(hop), [])
        peer, _ = listener.accept()
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                yield session, peer
            finally:
                session.abort()
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def in_data():
    """A session that was told to send the body."""
    async with connected() as (session, peer):
        peer.sendall(b"220 hi\r\n")
        await session.ask((GREETING,))
        asking = asyncio.ensure_future(session.ask((DATA,)))
        await asyncio.sleep(0.02)
        peer.sendall(b"354 go on\r\n")
        await asking
        yield session, peer


@pytest.mark.parametrize("unread", [b"250 taken\r\n", b"2", b"552 5.3.4 too big\r\n"])
@on_both_loops
async def test_bytes_in_the_kernel_keep_the_body_here(unread):
    """What came after 354 is noticed although the event loop had no turn to read it."""
    async with in_data() as (session, peer):
        peer.sendall(unread)
        fence = OpenFence()
        with pytest.raises(SessionBrokenError) as broken:
            await session.send_body(MESSAGE, fence)
        assert (broken.value.kind, fence.dots_left) == (FailureKind.PROTOCOL, 0)
        assert peer.recv(100) == b"DATA\r\n"
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(1)


@pytest.mark.parametrize("unread", [b"250 taken\r\n", b"2", b"354 go on\r\n"])
@on_both_loops
async def test_bytes_in_the_kernel_keep_the_dot_here(unread):
    """The same between the body and its dot: the mark was made, the dot still does not leave."""
    async with in_data() as (session, peer):

        async def commit():
            peer.sendall(unread)
            return True

        fence = OpenFence(commit=commit)
        with pytest.raises(SessionBrokenError) as broken:
            await session.send_body(MESSAGE, fence)
        assert (broken.value.kind, broken.value.phase, fence.dots_left) == (
            FailureKind.PROTOCOL,
            Phase.BODY,
            0,
        )


@on_both_loops
async def test_a_refusal_in_the_kernel_is_read_before_the_dot():
    """RFC 5321 section 4.2.5: a 4yz or 5yz that came while the body flowed is the answer."""
    async with in_data() as (session, peer):

        async def commit():
            peer.sendall(b"452 4.3.1 disk full\r\n")
            return True

        fence = OpenFence(commit=commit)
        phase, reply = await session.send_body(MESSAGE, fence)
        assert (phase, reply.code, fence.dots_left) == (Phase.BODY, 452, 0)


@pytest.mark.parametrize("end", ["close", "reset"])
@on_both_loops
async def test_a_connection_that_ended_in_the_kernel_keeps_the_dot_here(end):
    """A dot sent into a dead connection would make a certain failure unknown."""
    async with in_data() as (session, peer):

        async def commit():
            if end == "reset":
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            peer.close()
            return True

        fence = OpenFence(commit=commit)
        with pytest.raises(SessionBrokenError) as broken:
            await session.send_body(MESSAGE, fence)
        assert broken.value.kind in (FailureKind.CLOSED, FailureKind.RESET)
        assert (broken.value.phase, fence.dots_left) == (Phase.BODY, 0)


@on_both_loops
async def test_a_reply_behind_a_failed_write_is_read():
    """The server said 421 and reset the connection before we wrote: the write fails, the reply still counts."""
    async with connected() as (session, peer):
        peer.sendall(b"220 hi\r\n")
        await session.ask((GREETING,))
        peer.sendall(b"421 4.4.2 idle too long\r\n")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        peer.close()
        (reply,) = await session.ask((MAIL,))
        assert reply.code == 421


@pytest.mark.parametrize("clear", [b"220 hi\r\n", b"2"])
@pytest.mark.parametrize("tls", [TlsMode.IMPLICIT, TlsMode.STARTTLS])
@on_both_loops
async def test_no_byte_in_clear_survives_into_tls(tmp_path, clear, tls):
    """Whatever came before the handshake, unasked, ends the session (RFC 3207 section 6)."""
    certificates = Certificates(tmp_path)
    async with connected(host="localhost", tls=tls, ca_file=certificates.ca_file) as (session, peer):
        if tls is TlsMode.STARTTLS:
            peer.sendall(b"220 hi\r\n")
            await session.ask((GREETING,))
        peer.sendall(clear)
        await asyncio.sleep(0.02)
        with pytest.raises(SessionBrokenError) as broken:
            await session.start_tls()
        assert broken.value.kind is (FailureKind.TLS if tls is TlsMode.IMPLICIT else FailureKind.PROTOCOL)


@on_both_loops
async def test_a_flood_of_replies_fills_no_memory():
    """Replies that nobody asked for are not kept, however many come."""
    async with in_data() as (session, peer):

        async def commit():
            peer.setblocking(False)
            for _ in range(200):
                with contextlib.suppress(BlockingIOError):
                    peer.send(b"250 more\r\n" * 5000)
                await asyncio.sleep(0)
            return True

        with pytest.raises(SessionBrokenError):
            await session.send_body(MESSAGE, OpenFence(commit=commit))
        assert len(session.heard) < 10
        assert len(session._replies) < 10


@on_both_loops
async def test_a_half_closed_connection_is_over():
    """A server that will say nothing more is not waited for, even while our bytes are stuck on their way."""
    async with in_data() as (session, peer):
        sending = asyncio.ensure_future(session.send_body(b"a: b\r\n" * 3_000_000, OpenFence()))
        await asyncio.sleep(0.2)
        peer.shutdown(socket.SHUT_WR)
        with pytest.raises(SessionBrokenError) as broken:
            await asyncio.wait_for(sending, 20)
        assert (broken.value.phase, broken.value.kind) == (Phase.BODY, FailureKind.CLOSED)
