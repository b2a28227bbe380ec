"""Speaks a dialog over a session: the place where whatever went wrong on the wire becomes an `End`.

Called by `dial` and `pool`. A session is aborted here if its caller is cancelled, for nobody knows then where its stream stands.
"""

import ssl
from collections.abc import Generator
from typing import TypeVar

from mailkeep.core.outcome import Phase
from mailkeep.smtp.classify import FailureKind
from mailkeep.smtp.connect import connect
from mailkeep.smtp.dialog import Said, opening, transaction
from mailkeep.smtp.ending import End, Heard, ended_by_failure, ended_by_reply
from mailkeep.smtp.envelope import Envelope
from mailkeep.smtp.fence import Fence
from mailkeep.smtp.login import Login
from mailkeep.smtp.next_hop import NextHop
from mailkeep.smtp.reply import Reply
from mailkeep.smtp.session import Place, Session, SessionBrokenError

T = TypeVar("T")


async def open_session(
    hop: NextHop, place: Place, tls: ssl.SSLContext | None, login: Login | None, heard: list[Heard]
) -> Session | End:
    """Connect to `place`, protect the connection and log in; return the session, or why there is none."""
    try:
        session = await connect(hop, place, tls, heard)
    except SessionBrokenError as broken:
        return ended_by_failure(broken.phase, broken.kind, broken.detail)
    try:
        offered = await _speak(session, opening(hop, login, peer_is_loopback=session.peer_is_loopback))
    except SessionBrokenError as broken:
        offered = ended_by_failure(broken.phase, broken.kind, broken.detail)
    except BaseException:
        session.abort()
        raise
    if isinstance(offered, End):
        session.abort()
        return offered
    session.offered = offered
    return session


async def send_over(session: Session, envelope: Envelope, fence: Fence) -> End:
    """Send `envelope` in one transaction over `session`; return what decided it."""
    session.uses += 1
    try:
        if not fence.may_open_transaction():
            return ended_by_failure(Phase.MAIL, FailureKind.CLAIM_LOST)
        end = await _speak(session, transaction(envelope, session.offered))
        if end is not None:
            return end
        return ended_by_reply(*await session.send_body(envelope.message, fence))
    except SessionBrokenError as broken:
        return ended_by_failure(broken.phase, broken.kind, broken.detail)
    except BaseException:
        session.abort()
        raise


async def _speak(session: Session, talk: Generator[Said, list[Reply], T]) -> T:
    try:
        said = next(talk)
        while True:
            replies: list[Reply] = []
            if isinstance(said, str):
                await session.start_tls()
            else:
                replies = await session.ask(said)
            said = talk.send(replies)
    except StopIteration as done:
        result: T = done.value
        return result
