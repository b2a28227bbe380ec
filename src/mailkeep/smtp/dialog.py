"""The SMTP dialog without I/O (RFC 5321, 2920, 3207, 4954, 1870, 6152, 6531): what to say next, given the replies so far.

Two generators: `opening` brings a fresh connection to the point where mail can be sent, `transaction` speaks one
envelope up to the go-ahead for the body. Each yields groups of `Ask`, to be written at once, and is sent the replies in
order: one for each, or fewer after a 421, which ends everything. `START_TLS` asks for the handshake instead. Neither ever
sees a socket, a timer or the fence; `converse` lends them those.
"""

from collections.abc import Generator
from typing import Final, Literal, TypeAlias, TypeVar

import msgspec

from mailkeep.core.outcome import Phase
from mailkeep.smtp.capabilities import NO_CAPABILITIES, Capabilities, parse_capabilities
from mailkeep.smtp.classify import FailureKind
from mailkeep.smtp.ending import End, ended_by_failure, ended_by_reply, is_refusal
from mailkeep.smtp.envelope import Envelope
from mailkeep.smtp.login import Login, choose, encoded, exchange
from mailkeep.smtp.next_hop import NextHop, TlsMode
from mailkeep.smtp.reply import SERVICE_CLOSING, Reply


class Ask(msgspec.Struct, frozen=True, gc=False):
    """One command whose reply is awaited in `phase`. `shown` is the command without secrets and addresses.

    `secrets` are what the reply must not repeat where it is kept.
    """

    phase: Phase
    line: bytes
    shown: str
    secrets: tuple[str, ...] = ()


Group: TypeAlias = tuple[Ask, ...]
START_TLS: Final = "start TLS"
Said: TypeAlias = Group | Literal["start TLS"]
T = TypeVar("T")
Talk: TypeAlias = Generator[Said, list[Reply], T]

GREETING: Final = Ask(Phase.GREETING, b"", "")
DATA: Final = Ask(Phase.DATA, b"DATA\r\n", "DATA")
LONE_DOT: Final = Ask(Phase.DATA, b".\r\n", ".")
RSET: Final = Ask(Phase.QUIT, b"RSET\r\n", "RSET")
QUIT: Final = Ask(Phase.QUIT, b"QUIT\r\n", "QUIT")
_STARTTLS: Final = Ask(Phase.STARTTLS, b"STARTTLS\r\n", "STARTTLS")

_CLASSES: Final = {Phase.MAIL: (2, 4, 5), Phase.RCPT: (2, 4, 5), Phase.DATA: (3, 4, 5)}
"""The classes of reply that can answer a command; any other means that the stream is not what it seems."""


# -- the opening ---------------------------------------------------------------------------------------------------


def opening(hop: NextHop, login: Login | None, *, peer_is_loopback: bool) -> Talk[Capabilities | End]:
    """Open a session with `hop`; returns what the server offers, or why mail can't be sent.

    A login goes over TLS to a server that proved who it is, or to a loopback address (in clear only where
    `TlsMode.NONE` was chosen), or wherever `auth_without_tls` says so.
    """
    if hop.tls is TlsMode.IMPLICIT:
        yield START_TLS
    reply = (yield (GREETING,))[0]
    if reply.digit != 2:
        return ended_by_reply(Phase.GREETING, reply)
    offered = yield from _hello(hop)
    secure = hop.tls is TlsMode.IMPLICIT
    if isinstance(offered, Capabilities) and hop.tls in (TlsMode.STARTTLS, TlsMode.OPPORTUNISTIC):
        secured = yield from _start_tls(hop, offered)
        if isinstance(secured, End):
            return secured
        if secured:
            secure, offered = True, (yield from _hello(hop))
    if isinstance(offered, End) or login is None:
        return offered
    private = secure or (hop.tls is TlsMode.NONE and peer_is_loopback)
    proved = hop.proves_itself or peer_is_loopback
    if not (private and proved) and not hop.auth_without_tls:
        detail = "the server does not prove who it is" if private else ""
        return ended_by_failure(Phase.AUTH, FailureKind.AUTH_IN_CLEAR, detail)
    return (yield from _log_in(hop, login, offered, in_sight=not (private and proved))) or offered


def _hello(hop: NextHop) -> Talk[Capabilities | End]:
    reply = (yield (Ask(Phase.EHLO, f"EHLO {hop.helo_name}\r\n".encode(), f"EHLO {hop.helo_name}"),))[0]
    if reply.digit == 2:
        return parse_capabilities(reply)
    if reply.digit == 5:
        reply = (yield (Ask(Phase.EHLO, f"HELO {hop.helo_name}\r\n".encode(), f"HELO {hop.helo_name}"),))[0]
    return NO_CAPABILITIES if reply.digit == 2 else ended_by_reply(Phase.EHLO, reply)


def _start_tls(hop: NextHop, offered: Capabilities) -> Talk[bool | End]:
    """Return whether TLS was begun; False only where the hop may go on in clear."""
    if not offered.starttls:
        required = ended_by_failure(Phase.STARTTLS, FailureKind.STARTTLS_NOT_OFFERED)
        return False if hop.tls is TlsMode.OPPORTUNISTIC else required
    reply = (yield (_STARTTLS,))[0]
    if reply.digit == 2:
        yield START_TLS
        return True
    if hop.tls is TlsMode.OPPORTUNISTIC and is_refusal(reply):
        return False
    return ended_by_reply(Phase.STARTTLS, reply)


def _log_in(hop: NextHop, login: Login, offered: Capabilities, *, in_sight: bool) -> Talk[End | None]:
    mechanism = choose(hop, offered, in_sight=in_sight)
    if mechanism is None:
        detail = f"the next hop offers {' '.join(sorted(offered.auth)) or 'none'}"
        return ended_by_failure(Phase.AUTH, FailureKind.AUTH_NOT_OFFERED, detail)
    talk = exchange(mechanism, login)
    shown = f"AUTH {mechanism.value}"
    if talk.initial is None:
        first = Ask(Phase.AUTH, f"{shown}\r\n".encode(), shown)
    else:
        first = _answer(login, talk.initial, f"{shown} ")
    reply = (yield (first,))[0]
    for answer in talk.answers:
        if reply.digit != 3:
            return ended_by_reply(Phase.AUTH, reply)
        said = answer(reply.lines[0])
        if said is None:
            return ended_by_failure(Phase.AUTH, FailureKind.PROTOCOL, "a challenge that is not base64")
        reply = (yield (_answer(login, said),))[0]
    if reply.digit == 3 and talk.after_refusal is not None:
        reply = (yield (_answer(login, talk.after_refusal),))[0]
        return ended_by_reply(Phase.AUTH, reply)
    return None if reply.digit == 2 else ended_by_reply(Phase.AUTH, reply)


def _answer(login: Login, answer: bytes, command: str = "") -> Ask:
    said = encoded(answer).decode()
    secrets = {said, login.secret, encoded(login.secret.encode()).decode()} - {""}
    # The longest first: one may be a part of another.
    hidden = tuple(sorted(secrets, key=len, reverse=True))
    return Ask(Phase.AUTH, f"{command}{said}\r\n".encode(), f"{command}…", hidden)


# -- one transaction -------------------------------------------------------------------------------------------------


def transaction(envelope: Envelope, offered: Capabilities) -> Talk[End | None]:
    """Speak MAIL, RCPT and DATA for `envelope`, in one write where PIPELINING is offered.

    Returns None when the body is awaited, for the recipients that were accepted; else what ended the transaction.
    """
    utf8, eightbit = envelope.needs_smtputf8, envelope.needs_8bitmime
    if offered.max_size_bytes and len(envelope.message) > offered.max_size_bytes:
        sizes = f"{len(envelope.message)} bytes, where {offered.max_size_bytes} are the most"
        return ended_by_failure(Phase.MAIL, FailureKind.TOO_LARGE, sizes)
    if utf8 and not offered.smtputf8:
        return ended_by_failure(Phase.MAIL, FailureKind.NEEDS_SMTPUTF8)
    if eightbit and not offered.eightbitmime:
        return ended_by_failure(Phase.MAIL, FailureKind.NEEDS_8BITMIME)
    parameters = f" SIZE={len(envelope.message)}" if offered.size else ""
    parameters += " BODY=8BITMIME" * eightbit + " SMTPUTF8" * utf8
    group = (
        _mail(envelope.sender, parameters),
        *[_rcpt(address) for _, address in envelope.recipients],
        DATA,
    )
    return (yield from (_pipelined(group) if offered.pipelining else _one_by_one(group)))


def _mail(sender: str, parameters: str) -> Ask:
    return Ask(Phase.MAIL, f"MAIL FROM:<{sender}>{parameters}\r\n".encode(), f"MAIL FROM:<…>{parameters}")


def _rcpt(address: str) -> Ask:
    return Ask(Phase.RCPT, f"RCPT TO:<{address}>\r\n".encode(), "RCPT TO:<…>")


def _pipelined(group: Group) -> Talk[End | None]:
    replies = yield group
    end = _first_end(group, replies)
    accepted = any(reply.digit == 2 for reply in replies[1:-1])
    if end is None and not accepted:
        end = ended_by_reply(Phase.RCPT, replies[-2])
    if end is None or not end.clean or replies[-1].digit != 3:
        return end
    # The server awaits a body that must not come. With no recipient a lone dot ends that (RFC 2920 section 3.1); with one
    # that the refusal of MAIL should have prevented, a dot would deliver an empty message, so the connection goes.
    if accepted:
        return msgspec.structs.replace(end, clean=False)
    (reply,) = yield (LONE_DOT,)
    return msgspec.structs.replace(end, clean=reply.digit == 2 or is_refusal(reply))


def _one_by_one(group: Group) -> Talk[End | None]:
    replies: list[Reply] = []
    for ask in group:
        if ask is DATA and not any(reply.digit == 2 for reply in replies[1:]):
            return ended_by_reply(Phase.RCPT, replies[-1])
        replies += yield (ask,)
        end = _first_end(group, replies)
        if end is not None:
            return end
    return None


def _first_end(group: Group, replies: list[Reply]) -> End | None:
    """Return the end that the first deciding reply makes; a recipient's refusal decides for that recipient only."""
    for ask, reply in zip(group, replies, strict=False):
        if reply.digit not in _CLASSES[ask.phase]:
            return ended_by_failure(ask.phase, FailureKind.PROTOCOL, f"unexpected {reply.shown}")
        if reply.code == SERVICE_CLOSING or (reply.digit in (4, 5) and ask.phase is not Phase.RCPT):
            return ended_by_reply(ask.phase, reply)
    return None
