"""One connection to a next hop: bytes, timers and TLS. The words come from `dialog`, spoken through `converse`.

Each reply has one timer for all of it, so that a server that drips bytes gains nothing; all of them together have a generous
one, so that a tarpit ends, and only the answer to the final dot is waited for beyond that. Replies are taken only as answers
to what was asked. Bytes that nobody asked for end the session (those behind the answer to STARTTLS above all: RFC 3207
section 6), because pairing them with the next command could turn a refusal into a success; the body and the final dot
leave only while nothing is unread. What goes wrong is raised as `SessionBrokenError`, which `converse` turns into a value.
"""

import asyncio
import ipaddress
import os
import select
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, cast

import msgspec

from mailkeep.core.outcome import Phase
from mailkeep.smtp.alarm import Alarm
from mailkeep.smtp.capabilities import NO_CAPABILITIES
from mailkeep.smtp.classify import FailureKind
from mailkeep.smtp.dialog import GREETING, QUIT, Ask, Group
from mailkeep.smtp.ending import Heard
from mailkeep.smtp.envelope import dot_stuffed_blocks
from mailkeep.smtp.fence import Fence
from mailkeep.smtp.next_hop import NextHop, TlsMode
from mailkeep.smtp.reply import SERVICE_CLOSING, Reply, ReplyParser, without
from mailkeep.smtp.tls import NO_TLS_SPOKEN, is_pinned, told

BLOCK_BYTES: Final = 64 * 1024
"""The body leaves in blocks of this size, each with its own timer and a look at what the server says meanwhile."""
MAX_READ_ROUNDS: Final = 8
"""Turns of the event loop granted to input that waits in the kernel: two suffice; more means that it keeps coming."""
SALVAGE_BYTES: Final = 64 * 1024
"""Read from a connection that broke under our writing: room for any reply the parser takes."""
_BODY: Final = Ask(Phase.BODY, b"", "the body")
_OUT_OF_TURN: Final = "the server spoke out of turn"
_SESSION_OVER: Final = "the whole session has lasted too long"

Address: TypeAlias = tuple[Any, ...]
"""As the socket module has it: host and port first, more for IPv6."""


class Place(msgspec.Struct, frozen=True):
    """One IP address of the server `host`, whose name its certificate must have."""

    host: str
    family: int
    address: Address


class SessionBrokenError(Exception):
    """The session can't go on; `phase` and `kind` say where and why."""

    def __init__(self, phase: Phase, kind: FailureKind, detail: str = "") -> None:
        super().__init__(f"{kind} at {phase}")
        self.phase, self.kind, self.detail = phase, kind, detail


class Session(asyncio.Protocol):
    """One connection, used by one caller at a time."""

    __slots__ = (
        "_alarm",
        "_broken",
        "_deadline_s",
        "_farewell",
        "_gone",
        "_group",
        "_hop",
        "_limits",
        "_loop",
        "_missing",
        "_on_rest_over",
        "_parser",
        "_paused",
        "_place",
        "_poll",
        "_replies",
        "_socket",
        "_stray",
        "_timed_out",
        "_tls",
        "_transport",
        "_waiter",
        "began_s",
        "heard",
        "offered",
        "uses",
    )

    def __init__(
        self,
        hop: NextHop,
        place: Place,
        connection: socket.socket,
        tls: ssl.SSLContext | None,
        heard: list[Heard],
    ) -> None:
        self.began_s = time.monotonic()
        self.uses = 0
        self.offered = NO_CAPABILITIES
        self.heard = heard
        self._hop = hop
        self._limits = hop.timers.by_phase()
        self._deadline_s = self.began_s + hop.timers.session_s
        self._place = place
        self._socket = connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = ReplyParser()
        self._group: Group = ()
        self._replies: list[Reply] = []
        self._missing = 0
        self._farewell = False
        self._stray = False
        self._waiter: asyncio.Future[None] | None = None
        self._paused = False
        self._timed_out = False
        self._broken: FailureKind | None = None
        self._gone = asyncio.Event()
        self._alarm = Alarm(self._ring)
        self._on_rest_over: Callable[[Session], None] | None = None
        # The greeting may arrive before anybody waits for it, but never in clear where TLS comes first.
        self._expect(() if hop.tls is TlsMode.IMPLICIT else (GREETING,))

    # -- what callers use -------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether the connection stands and nothing unread came over it."""
        return self._broken is None and not self._unread

    @property
    def peer_is_loopback(self) -> bool:
        """Whether the other end is this machine."""
        return ipaddress.ip_address(self._place.address[0].partition("%")[0]).is_loopback

    @property
    def tls(self) -> ssl.SSLObject | None:
        """What there is to know of the encryption, None in clear."""
        if self._transport is None:
            return None
        return cast("ssl.SSLObject | None", self._transport.get_extra_info("ssl_object"))

    @property
    def certificate(self) -> bytes | None:
        """The server's certificate (DER), None in clear."""
        tls = self.tls
        return None if tls is None else tls.getpeercert(binary_form=True)

    async def ask(self, group: Group) -> list[Reply]:
        """Write all of `group` at once; return the replies in order: one for each, fewer after a 421."""
        data = b"".join([ask.line for ask in group])
        if data:
            self._require_silence(group[0].phase)
            self._expect(group)
            self._write(data)
        await self._answer()
        if self._unread and not self._farewell:
            raise self._out_of_step("more replies than commands")
        return self._replies

    async def start_tls(self) -> None:
        """Begin TLS on this connection, if nothing is unread: no byte in clear may pass for one behind the handshake."""
        assert self._transport is not None
        assert self._tls is not None
        if self._hop.tls is TlsMode.IMPLICIT and self._unread:
            # As the handshake would say, had these bytes come a moment later.
            raise SessionBrokenError(Phase.TLS, FailureKind.TLS, NO_TLS_SPOKEN)
        self._require_silence(Phase.STARTTLS)
        self._expect(())
        limit_s = self._limits[Phase.TLS]
        try:
            async with asyncio.timeout(limit_s):
                transport = await self._loop.start_tls(
                    self._transport,
                    self,
                    self._tls,
                    server_hostname=self._place.host,
                    ssl_handshake_timeout=2 * limit_s,  # the timer around it is the one that rings
                    ssl_shutdown_timeout=self._limits[Phase.QUIT],
                )
        except OSError as fault:  # ssl.SSLError and TimeoutError are among them
            raise SessionBrokenError(Phase.TLS, *failure_of(fault)) from fault
        assert transport is not None
        self._transport = transport
        if not is_pinned(self._hop, self.certificate):
            raise SessionBrokenError(Phase.TLS, FailureKind.TLS, "the certificate is not the pinned one")
        if self._hop.tls is TlsMode.IMPLICIT:
            self._expect((GREETING,))
        cipher, version, _ = transport.get_extra_info("cipher")
        self.heard.append(Heard(Phase.TLS, "", f"{version} {cipher}", time.monotonic()))

    async def send_body(self, message: bytes, fence: Fence) -> tuple[Phase, Reply]:
        """Write `message` and its final dot; return how far that came and the reply that decided.

        The phase is `DOT`, or `BODY` where the server refused before the end (RFC 5321 section 4.2.5).
        """
        await self._take_in()
        self._require_silence(Phase.BODY)
        self._expect((_BODY,))
        blocks = dot_stuffed_blocks(message, BLOCK_BYTES)
        last = next(blocks)
        size_bytes = len(last)
        for block in blocks:
            await self._flow(last)
            if self._replies:
                break
            await asyncio.sleep(0)  # a turn for others, however fast the network takes it
            last = block
            size_bytes += len(block)
        if fence.commit_dot is not None:
            await self._flow(last)
            last = b""
            if not self._replies and not await _committed(fence.commit_dot):
                raise self._breaking(FailureKind.CLAIM_LOST)
        if size_bytes > len(last):
            await self._take_in()
        if self._replies:
            return Phase.BODY, self._early_refusal()
        self._require_life()
        if self._unread:
            raise self._breaking(FailureKind.PROTOCOL, _OUT_OF_TURN)
        if not fence.dot_allowed():
            raise self._breaking(FailureKind.CLAIM_LOST)
        self._expect((Ask(Phase.DOT, b"", f"{size_bytes} bytes and the final dot"),))
        fence.dot_left()
        self._write(last + b".\r\n")
        await self._answer()
        return Phase.DOT, self._replies[0]

    def begin(self) -> list[Heard]:
        """Take a resting session into use for a new attempt; return its fresh transcript."""
        self._on_rest_over = None
        self._alarm.clear()
        self._deadline_s = time.monotonic() + self._hop.timers.session_s
        self.heard = []
        return self.heard

    def rest(self, limit_s: float, over: Callable[["Session"], None]) -> None:
        """Stay connected unused; `over` is called once, after `limit_s` or when the server says or ends anything."""
        self._expect(())
        self._on_rest_over = over
        self._alarm.set(limit_s)

    async def quit(self) -> None:
        """Say QUIT and close; gives the server no more than the timer for QUIT. Raises only when cancelled."""
        assert self._transport is not None
        try:
            async with asyncio.timeout(self._limits[Phase.QUIT]):
                await self.ask((QUIT,))
                self._transport.close()
                await self._gone.wait()
        except (SessionBrokenError, TimeoutError):
            pass  # over is over: the message was settled before
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._on_rest_over = None
        self._alarm.stop()
        if self._transport is not None:
            self._transport.abort()

    # -- what the event loop calls ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class does not inherit from it

    def data_received(self, data: bytes) -> None:
        """Pair what arrived with what was asked."""
        now_s = time.monotonic()
        fresh = self._parser.feed(data)
        for reply in fresh:
            if not self._missing:
                self._stray = True
                break
            ask = self._group[-self._missing]
            kept = without(reply, ask.secrets) if ask.secrets else reply
            self.heard.append(Heard(ask.phase, ask.shown, kept, now_s))
            self._replies.append(kept)
            self._missing -= 1
            self._farewell |= reply.code == SERVICE_CLOSING
        if self._answered or self._parser.fault:
            self._end_rest()
            self._wake()
        elif fresh:
            self._alarm.set(self._limit_s(self._group[-self._missing].phase))

    def eof_received(self) -> None:
        """Note the end; the transport closes itself."""
        self._end(FailureKind.CLOSED)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end, having read what the server said before it hung up on our writing."""
        assert self._transport is not None
        if exc is not None and self._transport.get_extra_info("ssl_object") is None:
            self._salvage()
        self._end(FailureKind.CLOSED if exc is None else failure_of(exc)[0])
        self._alarm.stop()
        self._gone.set()

    def pause_writing(self) -> None:
        """Hold the body back: the network is slower than we are."""
        self._paused = True

    def resume_writing(self) -> None:
        """Let the body flow again."""
        self._paused = False
        self._wake()

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _expect(self, group: Group) -> None:
        """From here on the server has the word, once for each of `group`."""
        self._group, self._replies, self._missing, self._farewell = group, [], len(group), False

    def _limit_s(self, phase: Phase) -> float:
        limit_s = self._limits[phase]
        # The answer to the dot is worth its whole time: cut off it is an unknown outcome.
        return limit_s if phase is Phase.DOT else min(limit_s, max(self._deadline_s - time.monotonic(), 0.0))

    @property
    def _unread(self) -> bool:
        return self._stray or self._parser.pending

    @property
    def _answered(self) -> bool:
        return not self._missing or self._farewell

    async def _answer(self) -> None:
        """Wait until the group is answered; each of its replies has its own time."""
        self._alarm.set(self._limit_s(self._group[0].phase))
        while not self._answered:
            self._require_life()
            await self._sleep()
        self._alarm.clear()

    async def _flow(self, block: bytes) -> None:
        """Write one block of the body and wait until the network took it, or the server spoke."""
        await self._take_in()
        if self._replies:
            return
        self._require_life()
        self._write(block)
        self._alarm.set(self._limit_s(Phase.BODY))
        while self._paused and not self._replies:
            await self._sleep()
            self._require_life()
        self._alarm.clear()

    async def _take_in(self) -> None:
        """Let the event loop read what the kernel holds, so that "nothing is unread" is true of the wire."""
        for _ in range(MAX_READ_ROUNDS):
            if self._broken or not self._poll.poll(0):
                return
            await asyncio.sleep(0)

    def _require_silence(self, phase: Phase) -> None:
        if self._broken is not None:
            raise SessionBrokenError(phase, self._broken)
        if self._unread:
            raise SessionBrokenError(phase, FailureKind.PROTOCOL, _OUT_OF_TURN)

    def _require_life(self) -> None:
        if self._answered:
            return
        if self._parser.fault:
            raise self._out_of_step()
        if self._timed_out:
            over = self._group[-self._missing].phase is not Phase.DOT and time.monotonic() >= self._deadline_s
            raise self._breaking(FailureKind.TIMEOUT, _SESSION_OVER if over else "")
        if self._broken:
            raise self._breaking(self._broken)

    def _early_refusal(self) -> Reply:
        if self._replies[0].digit not in (4, 5):
            raise self._breaking(FailureKind.PROTOCOL, f"unexpected {self._replies[0].shown}")
        return self._replies[0]

    def _breaking(self, kind: FailureKind, detail: str = "", said: str | None = None) -> SessionBrokenError:
        """Note in the transcript which command stays without an answer, and return what to raise."""
        ask = self._group[-max(self._missing, 1)]
        if self._missing:
            self.heard.append(Heard(ask.phase, ask.shown, said, time.monotonic()))
        return SessionBrokenError(ask.phase, kind, detail)

    def _out_of_step(self, fault: str = "") -> SessionBrokenError:
        """Return what to raise where the server broke the protocol, with what it said where that was no reply."""
        ask = self._group[-max(self._missing, 1)]
        # What answers a login may repeat it, whole or in part.
        said = "" if ask.secrets else self._parser.sample
        detail = ": ".join(filter(None, (self._parser.fault or fault, said)))
        return self._breaking(FailureKind.PROTOCOL, detail, said or None)

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    async def _sleep(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _ring(self) -> None:
        self._timed_out = self._on_rest_over is None
        self._end_rest()
        self._wake()

    def _end(self, kind: FailureKind) -> None:
        if self._broken is None:
            self._broken = kind
        self._end_rest()
        self._wake()

    def _end_rest(self) -> None:
        over, self._on_rest_over = self._on_rest_over, None
        if over is not None:
            over(self)

    def _salvage(self) -> None:
        try:
            data = self._socket.recv(SALVAGE_BYTES)
        except OSError:
            return  # nothing was waiting
        self.data_received(data)


def failure_of(fault: Exception) -> tuple[FailureKind, str]:
    """Return what kind of failure an exception of the network is, and what more it says."""
    detail = ""
    match fault:
        case TimeoutError():
            kind = FailureKind.TIMEOUT
        case ssl.SSLError():
            kind, detail = FailureKind.TLS, told(fault)
        case ConnectionRefusedError():
            kind = FailureKind.REFUSED
        case ConnectionError():
            kind = FailureKind.RESET
        case _:
            kind = FailureKind.UNREACHABLE
            detail = os.strerror(fault.errno) if isinstance(fault, OSError) and fault.errno else ""
    return kind, detail


async def _committed(commit_dot: Callable[[], Awaitable[bool]]) -> bool:
    try:
        return await commit_dot()
    except Exception:  # noqa: BLE001 - a mark that may not be durable forbids the dot; who failed to set it says so itself
        return False
