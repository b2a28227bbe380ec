"""The pool: sends one envelope to one next hop, over a connection that is reused where possible.

The one door of this room; dispatch calls `Pool.send` and gets an `Outcome`, whatever a server does. A resting connection
that the server gave up meanwhile is replaced without a failure on record. Nobody waits for QUIT or RSET: that goes on in
the background, still holding the connection's place, so that a server never sees more than `max_connections` of ours.
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final

from mailkeep.aside import LARGE_BYTES, aside
from mailkeep.core.outcome import Outcome, Phase, Severity
from mailkeep.smtp.classify import FailureKind
from mailkeep.smtp.converse import send_over
from mailkeep.smtp.dial import Dialer
from mailkeep.smtp.dialog import RSET
from mailkeep.smtp.ending import End, Heard, conclude, ended_by_failure
from mailkeep.smtp.envelope import Envelope, UnsafeEnvelopeError, check_safe
from mailkeep.smtp.fence import Fence
from mailkeep.smtp.next_hop import NextHop
from mailkeep.smtp.pace import Pace
from mailkeep.smtp.session import Session, SessionBrokenError

__all__ = ["Envelope", "Fence", "Pool"]

IDLE_S: Final = 30.0
"""A connection rests at most this long: well below the 300 s that RFC 5321 section 4.5.3.2.7 asks of servers."""
MAX_AGE_S: Final = 300.0
"""A connection is closed after this, so that a changed address, certificate or load balancer is noticed."""


class _Lane:
    """The connections to one next hop. `places` are held by those in use, opening or closing; the rest are `resting`."""

    __slots__ = ("_dialer", "hop", "pace", "places", "resting")

    def __init__(self, hop: NextHop) -> None:
        self.hop = hop
        self.pace = None if hop.messages_per_s is None else Pace(hop.messages_per_s)
        self._dialer = Dialer(hop)
        self.places = asyncio.Semaphore(hop.max_connections)
        self.resting: list[Session] = []  # last in, first out: the surplus grows old and is closed

    async def attempt(self, envelope: Envelope, fence: Fence) -> tuple[Session | None, End, list[Heard]]:
        """Send over a resting connection, or a new one if there is none or it turns out to be dead."""
        if self.resting:
            session = self.resting.pop()
            heard = session.begin()
            end = await send_over(session, envelope, fence)
            if not end.stale:
                return session, end, heard
            session.abort()
        heard = []
        opened = await self._dialer.open(heard)
        if isinstance(opened, End):
            return None, opened, heard
        return opened, await send_over(opened, envelope, fence), heard


class Pool:
    """Connections to `hops`. Raises OSError if a file of certificates can't be used, ValueError for two hops of one name."""

    def __init__(self, *hops: NextHop) -> None:
        self._lanes = {hop.name: _Lane(hop) for hop in hops}
        if len(self._lanes) != len(hops):
            raise ValueError("each next hop needs a name of its own")
        self._background: set[asyncio.Task[None]] = set()
        self._closing = False

    async def send(self, hop: NextHop, envelope: Envelope, fence: Fence) -> Outcome:
        """Try once to hand `envelope` to `hop`, one of those the pool was made for.

        Waits for a place first, then for its turn where the hop has a pace: here, because this is where every message for a
        hop passes, in the order in which workers brought it, and because who waits holds a place, so that no more wait than
        the hop has connections. The clock of the attempt starts after that. Raises nothing but CancelledError, and then
        the connection is gone: `fence.dot_left` was called before if the outcome is unknown.
        """
        try:
            if len(envelope.message) > LARGE_BYTES:
                await aside(check_safe, envelope)
            else:
                check_safe(envelope)
        except UnsafeEnvelopeError as fault:
            end = ended_by_failure(Phase.MAIL, FailureKind.UNSAFE, str(fault))
            return conclude(envelope, end, (), began_s=0.0, ended_s=0.0)
        lane = self._lanes[hop.name]
        await lane.places.acquire()
        try:
            if lane.pace is not None:
                await lane.pace.turn()
            began_s = time.monotonic()
            session, end, heard = await lane.attempt(envelope, fence)
        except BaseException:
            lane.places.release()
            raise
        outcome = conclude(envelope, end, heard, began_s=began_s, ended_s=time.monotonic())
        self._put_back(lane, session, end)
        return outcome

    async def close(self, timeout_s: float) -> None:
        """Close what rests and wait for all that is closing; after `timeout_s` it is cut. Call when no `send` runs."""
        self._closing = True
        for lane in self._lanes.values():
            for session in list(lane.resting):
                self._leave_rest(lane, session)
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _put_back(self, lane: _Lane, session: Session | None, end: End) -> None:
        if session is None:
            lane.places.release()
        elif not end.clean or not session.usable:
            session.abort()
            lane.places.release()
        elif (
            self._closing or session.uses >= lane.hop.messages_per_connection or _age_s(session) >= MAX_AGE_S
        ):
            self._spawn(_retire(lane, session))
        elif end.verdict.severity is Severity.SUCCESS:
            self._rest(lane, session)
            lane.places.release()
        else:
            self._spawn(self._renew(lane, session))

    def _rest(self, lane: _Lane, session: Session) -> None:
        lane.resting.append(session)
        session.rest(min(IDLE_S, MAX_AGE_S - _age_s(session)), lambda over: self._leave_rest(lane, over))

    def _leave_rest(self, lane: _Lane, session: Session) -> None:
        lane.resting.remove(session)
        session.begin()
        self._spawn(_retire_resting(lane, session))

    async def _renew(self, lane: _Lane, session: Session) -> None:
        """Make `session` fit for the next transaction after one that failed."""
        session.begin()
        fit = False
        try:
            (reply,) = await session.ask((RSET,))
            fit = reply.digit == 2 and session.usable and not self._closing
        except SessionBrokenError:
            pass  # then it is not fit
        finally:
            if fit:
                self._rest(lane, session)
            else:
                session.abort()
            lane.places.release()

    def _spawn(self, closing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(closing)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _age_s(session: Session) -> float:
    return time.monotonic() - session.began_s


async def _retire(lane: _Lane, session: Session) -> None:
    """Close `session`, which holds a place."""
    try:
        await session.quit()
    finally:
        lane.places.release()


async def _retire_resting(lane: _Lane, session: Session) -> None:
    """Close `session`, which was resting and takes a place for its farewell."""
    async with lane.places:
        await session.quit()
