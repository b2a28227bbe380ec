"""The session: one SMTP conversation with the sinkhole, from greeting to close.

RFC 5321 with PIPELINING (2920), SIZE (1870), 8BITMIME (6152), SMTPUTF8 (6531), ENHANCEDSTATUSCODES (2034), STARTTLS (3207) and
AUTH PLAIN/LOGIN (4954). What a healthy server must refuse (syntax, order, size, smuggling) is refused here; the rest is
`script.answer`'s decision, carried out by `_perform`. A message is captured, file line included, before its 250 is handed to
the connection. Replies to what came in one read leave in one write. Nothing is relayed. `Sinkhole` makes the sessions.

Where TLS comes first the server asks `begin_in_tls` before there is a connection: a loop can't be told to read nothing yet.
"""

import asyncio
import base64
import binascii
import hmac
import re
import ssl
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import ClassVar, Final, cast

import msgspec

from mailkeep.core.outcome import Phase
from mailkeep.sinkhole.capture import Capture, Captured
from mailkeep.sinkhole.certificates import Certificates
from mailkeep.sinkhole.mode_source import ModeSource, Notice
from mailkeep.sinkhole.report import Exchange, Observe, now_utc
from mailkeep.sinkhole.script import (
    GREYLIST_WINDOW_S,
    HOSTNAME,
    SERVICE_CLOSING,
    Action,
    ModeName,
    Then,
    answer,
    draw,
    mode_of,
)
from mailkeep.sinkhole.sightings import Sightings
from mailkeep.sinkhole.transcripts import Connection, Line, Speaker, Transcripts
from mailkeep.sinkhole.wire import (
    SMUGGLING,
    Path,
    anomalies_of,
    header_section,
    message_id_of,
    parse_path,
    unstuff,
)

MAX_STALL_S: Final = 3600.0
"""A stalled connection is cut after this long: beyond any client's patience with the final dot (600 s)."""
TLS_HANDSHAKE_TIMEOUT_S: Final = 30.0

EIGHT_BIT_MIME: Final = "8BITMIME"
SMTPUTF8: Final = "SMTPUTF8"
_MESSAGE_END: Final = b"\r\n.\r\n"
_STUFFING_ROOM: Final = 2  # dot-stuffing lengthens a message by a third at most
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")
_MECHANISMS: Final = frozenset({"PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER", "SCRAM-SHA-256"})
_MASK: Final = "***"


class Credentials(msgspec.Struct, frozen=True):
    """The login that a client must present; never shown."""

    username: str
    password: str

    def __repr__(self) -> str:
        return "Credentials(***)"


class Limits(msgspec.Struct, frozen=True):
    """What one sinkhole offers, and its bounds."""

    line_octets: int = 4096  # a command with its CRLF; an AUTH response is the longest
    recipients: int = 1000  # RFC 5321 section 4.5.3.1.8 asks for 100 at least
    message_bytes: int = 25 * 1024 * 1024  # what the service sends at most
    connections: int = 1000
    idle_timeout_s: float = 300.0  # RFC 5321 section 4.5.3.2.7
    extensions: tuple[str, ...] = ("PIPELINING", EIGHT_BIT_MIME, SMTPUTF8, "ENHANCEDSTATUSCODES")
    is_strict: bool = True  # refuse messages with bare CR, bare LF or NUL
    greylist_window_s: float = GREYLIST_WINDOW_S
    seed: int = 0  # of what is left to chance


class Shared:
    """What the sessions of one sinkhole have in common."""

    def __init__(
        self,
        source: ModeSource,
        capture: Capture,
        limits: Limits,
        *,
        tls: Certificates | None,
        implicit_tls: bool,
        credentials: Credentials | None,
        transcripts: Transcripts | None,
        observe: Observe | None,
        notice: Notice,
    ) -> None:
        self.source, self.capture, self.limits = source, capture, limits
        self.tls, self.implicit_tls, self.credentials = tls, implicit_tls, credentials
        self.transcripts = transcripts
        self.observe, self.notice = observe, notice
        self.sightings = Sightings()
        self.sessions: set[Session] = set()


class _State(Enum):
    OPEN = auto()
    WAITING = auto()  # for a delay or a TLS handshake; what comes stays in the buffer
    STALLED = auto()  # what comes is thrown away
    CLOSING = auto()


class _Transaction:
    """One MAIL and what followed it."""

    def __init__(self, path: Path) -> None:
        self.sender = path.address
        self.is_utf8 = SMTPUTF8 in path.parameters
        self.is_8bit_declared = self.is_utf8 or path.parameters.get("BODY", "").upper() == EIGHT_BIT_MIME
        self.recipients: list[str] = []
        self.is_body_begun = self.is_oversize = False
        self.scanned_octets = 0  # of the buffer, known to hold no end of message
        self.message = b""
        self.anomalies: tuple[str, ...] = ()


Effect = Callable[[Action], None]
"""What becomes true when an action takes what the phase offered; runs before the reply is written."""


class Session(asyncio.Protocol):
    """One connection."""

    def __init__(self, shared: Shared) -> None:
        self._shared, self._limits = shared, shared.limits
        self._loop = asyncio.get_running_loop()
        self._mode = shared.source.current()
        self._state = _State.OPEN
        self._buffer = bytearray()
        self._replies: list[str] = []
        self._step: Callable[[], bool] = self._step_line
        self._take_line: Callable[[bytes], None] = self._command
        self._transaction: _Transaction | None = None
        self._is_greeted = self._is_tls = self._is_authenticated = False
        self._active_s = self._began_s = self._loop.time()
        self._connection: Connection | None = None
        self._refusal: Action | None = None  # of TLS, where that comes first
        self._idle: asyncio.TimerHandle | None = None
        self._late: asyncio.Handle | None = None
        self._upgrade: asyncio.Task[None] | None = None

    # The connection.

    def begin_in_tls(self) -> tuple[float, ssl.SSLContext | None]:
        """Decide on a handshake that comes before all else: after how many seconds, and with what it is answered.

        None: with none; the connection is then begun in clear, for the fault that is due.
        """
        assert self._shared.tls is not None
        action = answer(self._mode, Phase.TLS, drawn=self._drawn(Phase.TLS, ""))
        self._refusal = None if action.takes else action
        return action.delay_s, self._shared.tls.context(self._mode.name) if action.takes else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the client, in TLS where that comes first."""
        self._transport = cast("asyncio.Transport", transport)
        self._client = str((transport.get_extra_info("peername") or ("",))[0])
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        if transcripts := self._shared.transcripts:
            self._connection = transcripts.begin(self._client, str(self._mode), now_utc())
        self._shared.sessions.add(self)
        self._watch_idle()
        if len(self._shared.sessions) > self._limits.connections:
            self._say_and_close("421 4.7.0 Too many connections")
        elif self._refusal:
            self._carry_out(self._refusal, Phase.TLS, _nothing, "")
        else:
            self._perform(Phase.GREETING, _nothing)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Handle what is complete; the rest waits in the buffer."""
        if self._state is not _State.STALLED:
            self._active_s = self._loop.time()
            self._buffer += data
            self._advance()

    def connection_lost(self, _fault: Exception | None) -> None:
        """Forget the connection; a message without its final dot was never there."""
        self._state = _State.CLOSING
        self._shared.sessions.discard(self)
        if self._connection and not self._connection.ended_at:
            self._note(Speaker.NOTE, "connection closed")
            self._connection.ended_at = now_utc()
        for pending in (self._idle, self._late, self._upgrade):
            if pending:
                pending.cancel()

    def pause_writing(self) -> None:
        """Read no more while the client reads no replies, so that neither buffer grows."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Read on."""
        if self._state is _State.OPEN:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Cut the connection without a word."""
        self._transport.abort()
        self.connection_lost(None)  # in a TLS handshake the loop would not say so

    def _watch_idle(self) -> None:
        patience_s = MAX_STALL_S if self._state is _State.STALLED else self._limits.idle_timeout_s
        now_s = self._loop.time()
        if now_s >= self._active_s + patience_s:
            if self._state in {_State.STALLED, _State.CLOSING}:
                self.abort()
                return
            self._active_s = now_s
            self._say_and_close("421 4.4.2 Idle for too long")
            self._flush()
        self._idle = self._loop.call_at(self._active_s + patience_s, self._watch_idle)

    # From octets to commands and messages.

    def _advance(self) -> None:
        while self._state is _State.OPEN and self._step():
            pass
        self._flush()

    def _flush(self) -> None:
        if self._replies:
            self._transport.write("".join(self._replies).encode())
            self._replies.clear()
        if self._state is _State.CLOSING:
            self._transport.close()

    def _step_line(self) -> bool:
        """Handle one line; return whether there was one."""
        end = self._buffer.find(b"\r\n", 0, self._limits.line_octets)
        if end < 0:
            if len(self._buffer) >= self._limits.line_octets:
                self._say_and_close("500 5.5.2 Line too long")
            return False
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        take, self._take_line = self._take_line, self._command
        if self._connection:
            self._note(Speaker.CLIENT, self._shown(line) if take == self._command else _MASK)
        take(line)
        return True

    def _step_message(self) -> bool:
        """Handle a message once its end is there; return whether it was."""
        transaction, buffer = self._open_transaction, self._buffer
        if not transaction.is_body_begun and len(buffer) > len(b"\r\n"):
            transaction.is_body_begun = True
            self._perform(Phase.BODY, _nothing, transaction.recipients[0])
            return True
        end = buffer.find(_MESSAGE_END, transaction.scanned_octets)
        if end < 0:
            if len(buffer) > self._limits.message_bytes * _STUFFING_ROOM:
                transaction.is_oversize = True
                del buffer[: -len(_MESSAGE_END)]
            transaction.scanned_octets = max(0, len(buffer) - len(_MESSAGE_END))
            return False
        transaction.message = unstuff(bytes(buffer[: end + 2]))
        del buffer[: end + len(_MESSAGE_END)]
        self._step = self._step_line
        self._note(Speaker.CLIENT, f"(a message of {len(transaction.message)} octets)")
        self._judge_message(transaction)
        return True

    @property
    def _open_transaction(self) -> _Transaction:
        assert self._transaction is not None  # DATA is refused without one
        return self._transaction

    # Carrying out what the script says.

    def _perform(self, phase: Phase, effect: Effect, recipient: str = "", seen_count: int = 0) -> None:
        action = answer(self._mode, phase, recipient, seen_count, self._drawn(phase, recipient))
        if action.delay_s:
            self._wait()
            self._late = self._loop.call_later(
                action.delay_s, self._perform_late, action, phase, effect, recipient
            )
        else:
            self._carry_out(action, phase, effect, recipient)

    def _drawn(self, phase: Phase, recipient: str) -> float:
        """Return what chance says; where nothing is left to it, no draw is used up."""
        mode = mode_of(self._mode, recipient)
        if mode.percent is None or mode.phase not in {None, phase}:
            return 0.0
        about = recipient or (self._transaction.sender if self._transaction else "")
        count = self._shared.sightings.note((str(mode), phase, about), self._loop.time(), float("inf"))
        return draw(self._limits.seed, str(mode), phase, about, str(count))

    def _perform_late(self, action: Action, phase: Phase, effect: Effect, recipient: str) -> None:
        self._state = _State.OPEN
        self._transport.resume_reading()
        self._carry_out(action, phase, effect, recipient)
        self._advance()

    def _carry_out(self, action: Action, phase: Phase, effect: Effect, recipient: str) -> None:
        try:
            if action.takes:
                effect(action)
        except OSError as fault:  # only the capture file can fail; then the message isn't ours
            self._shared.notice(f"the capture file can't be written ({fault.strerror})")
            action = Action(452, "4.3.1 The capture file can't be written")
        if self._shared.observe and (phase is Phase.DOT or not action.takes):
            self._shared.observe(self._exchange(action, phase, recipient))
        if action.code is not None:
            self._say(action.reply)
        if phase is Phase.DOT:
            self._transaction = None
        self._leave(action.then)

    def _leave(self, then: Then) -> None:
        match then:
            case Then.KEEP:
                pass
            case Then.CLOSE:
                self._state = _State.CLOSING
                self._note(Speaker.NOTE, "the sinkhole closes the connection")
            case Then.LEAVE:
                self._say_and_close(SERVICE_CLOSING.reply)
            case Then.STALL | Then.FREEZE:
                self._state = _State.STALLED
                self._note(Speaker.NOTE, "the sinkhole falls silent")
                self._buffer.clear()
                if then is Then.FREEZE:
                    self._transport.pause_reading()

    def _wait(self) -> None:
        self._state = _State.WAITING
        self._transport.pause_reading()

    def _say(self, reply: str) -> None:
        self._replies.append(f"{reply}\r\n")
        self._note(Speaker.SERVER, reply)

    def _note(self, by: Speaker, text: str) -> None:
        if self._connection and self._shared.transcripts:
            at_s = round(self._loop.time() - self._began_s, 6)
            self._shared.transcripts.note(self._connection, Line(at_s, by, text))

    def _shown(self, line: bytes) -> str:
        """Return a command as the transcript shows it: a login, and what may be one out of order, is masked."""
        words = line.decode("utf-8", "backslashreplace").split(" ", 2)
        verb = words[0].upper().encode()
        if verb not in self._VERBS:
            return f"({len(line)} octets that are no command)"
        if verb == b"AUTH":
            return " ".join(word if word.upper() in _MECHANISMS | {"AUTH"} else _MASK for word in words)
        return " ".join(words)

    def _say_and_close(self, reply: str) -> None:
        self._say(reply)
        self._state = _State.CLOSING
        if self._late:
            self._late.cancel()

    def _exchange(self, action: Action, phase: Phase, recipient: str) -> Exchange:
        transaction = self._transaction
        message = transaction.message if transaction else b""
        mode = mode_of(self._mode, recipient)
        is_shown = mode.name is ModeName.ACCEPT_LOG and phase is Phase.DOT
        recipients = (
            tuple(transaction.recipients) if transaction and phase is not Phase.RCPT else (recipient,)
        )
        return Exchange(
            at=now_utc(),
            client=self._client,
            mode=str(mode),
            phase=phase,
            sender=transaction.sender if transaction else "",
            recipients=recipients if recipients != ("",) else (),
            reply=action.reply,
            message_id=message_id_of(message),
            size_bytes=len(message),
            headers=header_section(message).decode("utf-8", "backslashreplace") if is_shown else None,
        )

    # Commands.

    def _command(self, line: bytes) -> None:
        verb, _, argument = line.partition(b" ")
        handle = self._VERBS.get(verb.upper())
        if handle is None or _CONTROL.search(line):
            self._say("500 5.5.2 Command not recognised")
        else:
            handle(self, argument)

    def _ehlo(self, argument: bytes) -> None:
        if argument:
            self._perform(Phase.EHLO, self._introduce)
        else:
            self._say("501 5.5.4 EHLO needs a name")

    def _introduce(self, _action: Action) -> None:
        self._greet()
        offers = [HOSTNAME, f"SIZE {self._limits.message_bytes}", *self._limits.extensions]
        if self._offers_starttls and not self._is_tls:
            offers.append("STARTTLS")
        elif self._offers_auth:
            offers.append("AUTH PLAIN LOGIN")
        for offer in offers:
            self._say(f"250-{offer}")

    @property
    def _offers_starttls(self) -> bool:
        is_hidden = self._mode.name is ModeName.NO_STARTTLS
        return self._shared.tls is not None and not self._shared.implicit_tls and not is_hidden

    @property
    def _offers_auth(self) -> bool:
        return self._shared.credentials is not None and self._mode.name is not ModeName.NO_AUTH

    def _helo(self, argument: bytes) -> None:
        if argument:
            self._greet()
            self._say(f"250 {HOSTNAME}")
        else:
            self._say("501 5.5.4 HELO needs a name")

    def _greet(self) -> None:
        self._is_greeted, self._transaction = True, None

    def _starttls(self, argument: bytes) -> None:
        if not self._offers_starttls:
            self._say("502 5.5.1 STARTTLS not offered")
        elif argument:
            self._say("501 5.5.4 STARTTLS takes no parameter")
        elif self._is_tls or not self._is_greeted:
            self._say("503 5.5.1 STARTTLS out of order")
        else:
            self._perform(Phase.STARTTLS, self._begin_tls)

    def _begin_tls(self, _action: Action) -> None:
        self._wait()
        self._buffer.clear()  # what was sent in clear behind STARTTLS is not the client's (CVE-2011-0411)
        self._is_greeted, self._transaction = False, None
        self._late = self._loop.call_soon(self._meet_tls)  # behind the 220

    def _meet_tls(self) -> None:
        self._state = _State.OPEN
        self._transport.resume_reading()
        self._perform(Phase.TLS, self._shake_hands)
        self._flush()

    def _shake_hands(self, _action: Action) -> None:
        self._wait()
        self._upgrade = self._loop.create_task(self._start_tls())

    async def _start_tls(self) -> None:
        assert self._shared.tls is not None
        try:
            transport = await self._loop.start_tls(
                self._transport,
                self,
                self._shared.tls.context(self._mode.name),
                server_side=True,
                ssl_handshake_timeout=TLS_HANDSHAKE_TIMEOUT_S,
            )
        except OSError as fault:  # it failed, which is the client's right; the loop has closed the connection
            self._note(Speaker.NOTE, f"the TLS handshake failed: {getattr(fault, 'reason', None) or fault}")
            return
        if transport is not None:
            self._transport, self._is_tls, self._state = transport, True, _State.OPEN
            self._note(Speaker.NOTE, "TLS")
            self._advance()  # what the client sent as soon as it could

    def _mail(self, argument: bytes) -> None:
        self._mode = self._shared.source.current()
        if not self._is_greeted or self._transaction:
            self._say("503 5.5.1 MAIL out of order")
        elif self._offers_auth and not self._is_authenticated:
            self._say("530 5.7.0 Authentication required")
        elif not (path := parse_path(b"FROM", argument)):
            self._say("501 5.1.7 Malformed MAIL")
        elif fault := self._parameter_fault(path):
            self._say(fault)
        else:
            self._perform(Phase.MAIL, partial(self._open, path))

    def _parameter_fault(self, path: Path) -> str | None:
        """Return the reply to parameters that were not offered or can't be met, if any."""
        offered = self._limits.extensions
        for name, value in path.parameters.items():
            match name:
                case "SIZE" if value.isdecimal() and len(value) <= len(str(2**63)):
                    if int(value) > self._limits.message_bytes:
                        return "552 5.3.4 Message too big"
                case "BODY" if EIGHT_BIT_MIME in offered and value.upper() in {"7BIT", EIGHT_BIT_MIME}:
                    pass
                case "SMTPUTF8" if SMTPUTF8 in offered and not value:
                    pass
                case "AUTH" if self._offers_auth and value:
                    pass
                case _:
                    return "555 5.5.4 Parameter not offered or malformed"
        if not path.address.isascii() and SMTPUTF8 not in path.parameters:
            return "553 5.6.7 Address needs SMTPUTF8"
        return None

    def _open(self, path: Path, _action: Action) -> None:
        self._transaction = _Transaction(path)

    def _rcpt(self, argument: bytes) -> None:
        self._mode = self._shared.source.current()
        if not self._transaction:
            self._say("503 5.5.1 RCPT out of order")
        elif not (path := parse_path(b"TO", argument)):
            self._say("501 5.1.3 Malformed RCPT")
        elif path.parameters:
            self._say("555 5.5.4 Parameter not offered or malformed")
        elif not (path.address.isascii() or self._transaction.is_utf8):
            self._say("553 5.6.7 Address needs SMTPUTF8")
        elif len(self._transaction.recipients) >= self._limits.recipients:
            self._say("452 4.5.3 Too many recipients")
        else:
            seen_count = self._seen_count(path.address)
            self._perform(Phase.RCPT, partial(self._add_recipient, path.address), path.address, seen_count)

    def _seen_count(self, recipient: str) -> int:
        mode = mode_of(self._mode, recipient)
        if mode.times is None:
            return 0
        note = self._shared.sightings.note
        if mode.name is ModeName.GREYLIST:
            key = (self._client, self._open_transaction.sender, recipient)
            return note(key, self._loop.time(), self._limits.greylist_window_s)
        return note((recipient,), self._loop.time(), float("inf"))

    def _add_recipient(self, recipient: str, _action: Action) -> None:
        self._open_transaction.recipients.append(recipient)

    def _data(self, argument: bytes) -> None:
        if argument:
            self._say("501 5.5.4 DATA takes no parameter")
        elif not self._transaction:
            self._say("503 5.5.1 DATA out of order")
        elif not self._transaction.recipients:
            self._say("554 5.5.1 No valid recipients")
        else:
            self._perform(Phase.DATA, self._expect_message, self._transaction.recipients[0])

    def _expect_message(self, _action: Action) -> None:
        self._step = self._step_message
        # The CRLF that ended DATA goes before the message: so the end of an empty one looks like any other.
        self._buffer[:0] = b"\r\n"

    def _judge_message(self, transaction: _Transaction) -> None:
        recipient = transaction.recipients[0]
        if transaction.is_oversize or len(transaction.message) > self._limits.message_bytes:
            self._carry_out(Action(552, "5.3.4 Message too big"), Phase.DOT, _nothing, recipient)
            return
        transaction.anomalies = anomalies_of(
            transaction.message, is_8bit_declared=transaction.is_8bit_declared
        )
        self._shared.capture.anomaly_counts.update(transaction.anomalies)
        if self._limits.is_strict and not SMUGGLING.isdisjoint(transaction.anomalies):
            refusal = Action(554, "5.6.0 Bare CR, bare LF or NUL in the message")
            self._carry_out(refusal, Phase.DOT, _nothing, recipient)
        else:
            self._perform(Phase.DOT, self._keep, recipient)

    def _keep(self, action: Action) -> None:
        transaction, capture = self._open_transaction, self._shared.capture
        capture.add(
            Captured(
                received_at=now_utc(),
                client=self._client,
                sender=transaction.sender,
                recipients=tuple(transaction.recipients),
                message_id=message_id_of(transaction.message),
                body=transaction.message,
                is_answered=action.code == 250 and not self._transport.is_closing(),
                is_tls=self._is_tls,
                is_authenticated=self._is_authenticated,
                anomalies=transaction.anomalies,
                id=f"m{capture.total_count + 1}",
                connection_id=self._connection.id if self._connection else "",
            )
        )

    def _rset(self, _argument: bytes) -> None:
        self._transaction = None
        self._say("250 2.0.0 Ok")

    def _noop(self, _argument: bytes) -> None:
        self._say("250 2.0.0 Ok")

    def _help(self, _argument: bytes) -> None:
        self._say("214 2.0.0 This server keeps what it accepts and delivers nothing")

    def _vrfy(self, _argument: bytes) -> None:
        self._say("252 2.5.0 Try RCPT")

    def _quit(self, _argument: bytes) -> None:
        self._perform(Phase.QUIT, _nothing)

    # AUTH, RFC 4954 with PLAIN (RFC 4616) and LOGIN.

    def _auth(self, argument: bytes) -> None:
        mechanism, _, initial = argument.partition(b" ")
        if not self._offers_auth:
            self._say("502 5.5.1 AUTH not offered")
        elif not self._is_greeted or self._is_authenticated or self._transaction:
            self._say("503 5.5.1 AUTH out of order")
        elif self._offers_starttls and not self._is_tls:
            self._say("538 5.7.11 Encryption required")
        elif mechanism.upper() == b"PLAIN":
            self._ask("", self._auth_plain, initial)
        elif mechanism.upper() == b"LOGIN":
            self._ask("VXNlcm5hbWU6", self._auth_login, initial)
        else:
            self._say("504 5.5.4 Mechanism not offered")

    def _ask(self, challenge: str, take: Callable[[bytes], None], response: bytes = b"") -> None:
        """Take the response that came with the command, else ask for it with `challenge` (base64)."""
        if response:
            take(response)
        else:
            self._take_line = take
            self._say(f"334 {challenge}")

    def _auth_plain(self, response: bytes) -> None:
        parts = (_decoded(response) or b"").split(b"\0")
        if len(parts) != 3:
            self._say("501 5.5.2 Malformed AUTH response")
        else:
            self._check_login(parts[1], parts[2])

    def _auth_login(self, response: bytes) -> None:
        username = _decoded(response)
        if username is None:
            self._say("501 5.5.2 Malformed AUTH response")
        else:
            self._ask("UGFzc3dvcmQ6", partial(self._auth_password, username))

    def _auth_password(self, username: bytes, response: bytes) -> None:
        password = _decoded(response)
        if password is None:
            self._say("501 5.5.2 Malformed AUTH response")
        else:
            self._check_login(username, password)

    def _check_login(self, username: bytes, password: bytes) -> None:
        credentials = self._shared.credentials
        assert credentials is not None
        is_user = hmac.compare_digest(username, credentials.username.encode())
        is_password = hmac.compare_digest(password, credentials.password.encode())
        if is_user and is_password:
            self._perform(Phase.AUTH, self._log_in)
        else:
            self._say("535 5.7.8 Authentication credentials invalid")

    def _log_in(self, _action: Action) -> None:
        self._is_authenticated = True

    _VERBS: ClassVar[dict[bytes, Callable[["Session", bytes], None]]] = {
        b"EHLO": _ehlo,
        b"HELO": _helo,
        b"STARTTLS": _starttls,
        b"AUTH": _auth,
        b"MAIL": _mail,
        b"RCPT": _rcpt,
        b"DATA": _data,
        b"RSET": _rset,
        b"NOOP": _noop,
        b"HELP": _help,
        b"VRFY": _vrfy,
        b"QUIT": _quit,
    }


def _nothing(_action: Action) -> None:
    """Take what has no consequence."""


def _decoded(response: bytes) -> bytes | None:
    """Return the octets of a base64 response, or None if it is malformed or `*`, which gives up."""
    try:
        return base64.b64decode(response, validate=True)
    except binascii.Error:
        return None
