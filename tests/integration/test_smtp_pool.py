"""The pool: which connection an attempt gets, what becomes of it afterwards, and that nobody waits without need."""

import asyncio
import time

import msgspec
import pytest
from smtp_servers import Act, OpenFence, hop_to, mail, on_both_loops, pool_of, scripted_peer

from mailkeep.core.outcome import Phase, Severity
from mailkeep.smtp import pool as pool_module
from mailkeep.smtp.next_hop import TlsMode
from mailkeep.smtp.pool import Pool


async def send_once(pool, hop):
    """Send one message with nothing special about it."""
    return await pool.send(hop, mail(), OpenFence())


@on_both_loops
async def test_a_connection_is_reused_and_the_last_used_first():
    """Two at once need two connections; one after the other all go over the same one."""
    async with scripted_peer() as peer:
        hop = hop_to(peer.port)
        async with pool_of(hop) as pool:
            await asyncio.gather(send_once(pool, hop), send_once(pool, hop))
            assert len(peer.commands) == 2
            for _ in range(3):
                outcome = await send_once(pool, hop)
                assert outcome.steps[0].phase is Phase.MAIL
        assert sorted(commands.count("MAIL") for commands in peer.commands) == [1, 4]


@on_both_loops
async def test_no_more_connections_than_allowed():
    """The third waits for a place; the clock of its attempt has not started yet."""
    async with scripted_peer(mail=[Act.STALL, Act.STALL, b"250 ok\r\n"]) as peer:
        hop = hop_to(peer.port, max_connections=2, timers={"mail_s": 1.0})
        async with pool_of(hop) as pool:
            outcomes = await asyncio.gather(*(send_once(pool, hop) for _ in range(3)))
    assert sorted(outcome.severity for outcome in outcomes) == [
        Severity.SUCCESS,
        Severity.TRANSIENT,
        Severity.TRANSIENT,
    ]
    assert max(outcome.duration_ms for outcome in outcomes if outcome.severity is Severity.SUCCESS) < 900


async def test_a_new_connection_that_dies_is_not_replaced():
    """Only a reused connection is given a second chance: a next hop that is out is seen to be out."""
    async with scripted_peer(mail=Act.CLOSE) as peer:
        hop = hop_to(peer.port)
        async with pool_of(hop) as pool:
            await send_once(pool, hop)
            assert len(peer.commands) == 1


@pytest.mark.parametrize("farewell", [b"421 4.4.2 idle too long\r\n", b"4", Act.CLOSE, Act.RESET])
@on_both_loops
async def test_a_resting_connection_the_server_ends_is_dropped_while_it_rests(farewell):
    """Whatever comes over a resting connection ends it, before anybody tries to use it."""
    connections = []

    async def serve(reader, writer):
        connections.append(writer)
        writer.write(b"220 hi\r\n")
        while line := await reader.readline():
            writer.write(b"354 go on\r\n" if line == b"DATA\r\n" else b"250 ok\r\n")
            if line == b"DATA\r\n":
                await reader.readuntil(b"\r\n.\r\n")
                writer.write(b"250 ok\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        hop = hop_to(server.sockets[0].getsockname()[1])
        async with pool_of(hop) as pool:
            await send_once(pool, hop)
            if isinstance(farewell, bytes):
                connections[0].write(farewell)
            elif farewell == Act.CLOSE:
                connections[0].close()
            else:
                connections[0].transport.abort()
            await asyncio.sleep(0.1)
            outcome = await send_once(pool, hop)
            assert outcome.severity is Severity.SUCCESS
            assert outcome.steps[0].phase is Phase.CONNECT


async def test_after_a_refusal_rset_comes_before_the_next_mail():
    """The next envelope starts clean, over the same connection."""
    async with scripted_peer(rcpt=[b"550 5.1.1 unknown\r\n", b"250 ok\r\n"], dot=b"250 ok\r\n") as peer:
        hop = hop_to(peer.port, max_connections=1)
        async with pool_of(hop) as pool:
            assert (await send_once(pool, hop)).severity is Severity.PERMANENT
            assert (await send_once(pool, hop)).severity is Severity.SUCCESS
    verbs = ["EHLO", "MAIL", "RCPT", "DATA", ".", "RSET", "MAIL", "RCPT", "DATA", ".", "QUIT"]
    assert peer.commands == [verbs]


async def test_uses_are_bounded():
    """After so many transactions a connection is closed with QUIT and replaced."""
    async with scripted_peer() as peer:
        hop = hop_to(peer.port, max_connections=1, messages_per_connection=3)
        async with pool_of(hop) as pool:
            for _ in range(7):
                await send_once(pool, hop)
    assert [(commands.count("MAIL"), commands[-1]) for commands in peer.commands] == [
        (3, "QUIT"),
        (3, "QUIT"),
        (1, "QUIT"),
    ]


@pytest.mark.parametrize("bound", ["IDLE_S", "MAX_AGE_S"])
@on_both_loops
async def test_rest_and_age_are_bounded(bound):
    """A connection that rests too long or grew too old says QUIT by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, bound, 0.2)
        async with scripted_peer() as peer:
            hop = hop_to(peer.port)
            async with pool_of(hop) as pool:
                await send_once(pool, hop)
                assert "QUIT" not in peer.commands[0]
                await asyncio.sleep(0.5)
                assert peer.commands[0][-1] == "QUIT"
                assert (await send_once(pool, hop)).steps[0].phase is Phase.CONNECT


@pytest.mark.parametrize(
    "answer", [Act.STALL, Act.CLOSE, Act.RESET, b"421 4.0.0 x\r\n", b"500 x\r\n", b"garbage\r\n"]
)
async def test_quit_keeps_nobody_waiting(answer):
    """Whatever a server does at QUIT, the outcome came before it, and its place is free after the timer for QUIT."""
    async with scripted_peer(quit=answer) as peer:
        hop = hop_to(peer.port, max_connections=1, messages_per_connection=1, timers={"quit_s": 0.3})
        async with pool_of(hop) as pool:
            outcome = await send_once(pool, hop)
            assert (outcome.severity, "QUIT" in peer.commands[0]) == (Severity.SUCCESS, False)
            assert (await asyncio.wait_for(send_once(pool, hop), 20)).severity is Severity.SUCCESS
    assert len(peer.commands) == 2


async def test_a_closing_connection_still_holds_its_place():
    """The server never sees more connections of ours than allowed, not even while one says QUIT."""
    async with scripted_peer(quit=Act.STALL) as peer:
        hop = hop_to(peer.port, max_connections=1, messages_per_connection=1, timers={"quit_s": 0.3})
        async with pool_of(hop) as pool:
            await send_once(pool, hop)
            sending = asyncio.create_task(send_once(pool, hop))
            await asyncio.sleep(0.1)
            assert len(peer.commands) == 1
            assert (await sending).severity is Severity.SUCCESS


async def test_close_is_bounded():
    """Closing waits for farewells, but no longer than told."""
    async with scripted_peer(quit=Act.STALL) as peer:
        hop = hop_to(peer.port, timers={"quit_s": 30.0})
        pool = Pool(hop)
        await send_once(pool, hop)
        before = time.monotonic()
        await pool.close(0.2)
        assert 0.1 < time.monotonic() - before < 10


async def test_hops_do_not_share_connections():
    """Each next hop has its own lane: one that stalls leaves the other alone."""
    async with scripted_peer(mail=Act.STALL) as slow, scripted_peer() as quick:
        slow_hop, quick_hop = hop_to(slow.port, max_connections=1), hop_to(quick.port, max_connections=1)
        quick_hop = msgspec.structs.replace(quick_hop, name="quick")
        pool = Pool(slow_hop, quick_hop)
        stuck = asyncio.create_task(send_once(pool, slow_hop))
        await asyncio.sleep(0.05)
        assert (await asyncio.wait_for(send_once(pool, quick_hop), 20)).severity is Severity.SUCCESS
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck
        await pool.close(20)


async def test_a_waiting_send_can_be_cancelled():
    """Cancelling one that still waits for a place leaves the places as they were."""
    async with scripted_peer(mail=[Act.STALL, b"250 ok\r\n"]) as peer:
        hop = hop_to(peer.port, max_connections=1, timers={"mail_s": 0.3})
        async with pool_of(hop) as pool:
            first = asyncio.create_task(send_once(pool, hop))
            waiting = asyncio.create_task(send_once(pool, hop))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert (await first).severity is Severity.TRANSIENT
            assert (await asyncio.wait_for(send_once(pool, hop), 20)).severity is Severity.SUCCESS


def test_a_missing_ca_file_stops_the_start():
    """A hop whose authorities can't be read is found out when the pool is made, not with the first mail."""
    with pytest.raises(OSError, match=r"."):
        Pool(hop_to(25, tls=TlsMode.STARTTLS, ca_file="/nowhere/ca.pem"))


def test_two_hops_of_one_name_are_refused():
    """Connections are kept by the name of the hop."""
    with pytest.raises(ValueError, match="name of its own"):
        Pool(hop_to(25), hop_to(26))
