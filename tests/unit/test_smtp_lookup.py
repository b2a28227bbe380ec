"""Look-ups of hosts: one at a time for each address, and none of them stands in the way of another hop."""

import asyncio
import socket
import threading

import pytest

from mailkeep.core.outcome import Phase
from mailkeep.smtp.classify import FailureKind
from mailkeep.smtp.lookup import MAX_PLACES, Lookups
from mailkeep.smtp.next_hop import HopAddress, NextHop, Timers
from mailkeep.smtp.session import SessionBrokenError

MANY = 100
"""More than there are threads in the event loop's own pool."""


def place(number=1, family=socket.AF_INET):
    """One entry as the C library has it."""
    return (family, socket.SOCK_STREAM, 0, "", (f"192.0.2.{number}", 25))


@pytest.fixture
def name_server(monkeypatch):
    """A name server: what it says, for each host; `silent.test` is answered when the test sets an event."""

    class NameServer:
        def __init__(self):
            self.asked, self.speaks = [], threading.Event()

        def getaddrinfo(self, host, port, family=0, kind=0, proto=0, flags=0):
            if flags & socket.AI_NUMERICHOST:
                raise socket.gaierror(socket.EAI_NONAME, "no number")
            self.asked.append((host, family))
            if host == "silent.test":
                self.speaks.wait(60)
            if host == "gone.test":
                raise socket.gaierror(socket.EAI_NONAME, "no such name")
            return [place(number) for number in range(1, 21)]

    server = NameServer()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", server.getaddrinfo)
        yield server
    server.speaks.set()


def lookups(host, limit_s=30.0, **changes):
    """The look-ups of a hop, and its address."""
    address = HopAddress(host, 25)
    hop = NextHop("hop", (address,), timers=Timers(connect_s=limit_s), **changes)
    return Lookups(hop.timers.connect_s, hop.source_address), address


async def test_a_silent_name_server_holds_up_its_own_hop_only(name_server):
    """However many attempts wait for it, it is asked once; other hops are looked up at once, and it is heard when it speaks."""
    stuck, address = lookups("silent.test")
    waiting = [asyncio.create_task(stuck.places(address)) for _ in range(MANY)]
    await asyncio.sleep(0)
    well, elsewhere = lookups("well.test")
    assert len(await well.places(elsewhere)) == MAX_PLACES
    assert not any(task.done() for task in waiting)
    name_server.speaks.set()
    assert {len(places) for places in await asyncio.gather(*waiting)} == {MAX_PLACES}
    assert sorted(host for host, _ in name_server.asked) == ["silent.test", "well.test"]


async def test_who_gives_up_leaves_the_look_up_to_the_next(name_server):
    """A look-up that takes too long is a timeout of the attempt; the next attempt waits for the same one."""
    stuck, address = lookups("silent.test", limit_s=0.3)
    for _ in range(2):
        with pytest.raises(SessionBrokenError) as broken:
            await stuck.places(address)
        assert (broken.value.phase, broken.value.kind) == (Phase.CONNECT, FailureKind.TIMEOUT)
    assert len(name_server.asked) == 1


async def test_a_name_is_asked_for_anew_each_time(name_server):
    """Nothing is remembered, a failure neither."""
    gone, address = lookups("gone.test")
    for _ in range(2):
        with pytest.raises(SessionBrokenError) as broken:
            await gone.places(address)
        assert broken.value.kind is FailureKind.DNS
    assert len(name_server.asked) == 2


async def test_the_family_is_that_of_the_source_address(name_server):
    """From an address of IPv4 nothing of IPv6 can be reached."""
    for source, family in ((None, socket.AF_UNSPEC), ("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        found, address = lookups("well.test", source_address=source)
        await found.places(address)
        assert name_server.asked[-1] == ("well.test", family)


async def test_a_number_asks_nobody():
    """An IP address needs no thread and no name server."""
    found, address = lookups("127.0.0.1")
    before = threading.active_count()
    (only,) = await found.places(address)
    assert (only.address, threading.active_count()) == (("127.0.0.1", 25), before)
