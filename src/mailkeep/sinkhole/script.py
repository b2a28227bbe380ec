"""The script: which answer the sinkhole gives, by mode, phase, recipient and how often that recipient was seen.

Pure: no I/O, no clock. A mode is a row of `_FAULTS`, a row maps phases to actions, and a phase without an entry is
answered as a healthy server would. The session asks `answer` once a phase and carries the `Action` out.

A mode is written `accept`, `defer-3x` (three times, then accepted), `drop@dot` (that phase only; a fault without a phase
strikes at the first one it meets) or `tempfail@rcpt~25%` (a quarter of the time, by a seed: the same every time). The same
words are the script of one recipient, before a `+label`, at the sinkhole's own domain: `defer-3x+anything@sinkhole.test`;
there a dot stands for the `@` of the phase: `drop.dot+anything@sinkhole.test`.
A recipient's script goes before the mode; after RCPT the first accepted recipient speaks for the message. What is said
before a recipient is known (greeting, EHLO, TLS, AUTH, MAIL) is the mode's alone. Codes: RFC 5321 section 4.2, RFC 3463,
RFC 3207 section 4, RFC 4954 section 6.
"""

import hashlib
import re
from enum import StrEnum
from typing import Final

import msgspec

from mailkeep.core.address import is_sinkhole
from mailkeep.core.outcome import Phase

HOSTNAME: Final = "sinkhole.test"
GREYLIST_WINDOW_S: Final = 1800.0
"""How long a (client, sender, recipient) that was greylisted is let through; later it is new again."""
SLOW_REPLY_S: Final = 1.0
"""How late each reply of `slow` is: a phase with a timer of its own stands it, a total of a second does not."""
MAX_MODE_CHARS: Final = 64
"""Longer text is no mode; sources read no more of it."""


class Then(StrEnum):
    """What becomes of the connection once the reply is written."""

    KEEP = "keep"
    CLOSE = "close"
    LEAVE = "leave"  # an unasked 421, then close
    STALL = "stall"  # open and read, never answered again
    FREEZE = "freeze"  # open and not even read: the client's window fills


class Action(msgspec.Struct, frozen=True):
    """One answer. `takes` says whether what the phase offers (sender, recipient, message) is taken, whatever is replied."""

    code: int | None  # None: nothing is said
    text: str = ""
    then: Then = Then.KEEP
    takes: bool = False
    delay_s: float = 0.0

    @property
    def reply(self) -> str:
        """The reply line without its CRLF, e.g. `250 2.0.0 Ok`; empty when nothing is said."""
        return "" if self.code is None else f"{self.code} {self.text}"


class ModeName(StrEnum):
    """What a mode does; `mailkeep sinkhole mode` takes these words."""

    ACCEPT = "accept"
    ACCEPT_LOG = "accept-log"  # and the log shows envelope and headers
    DEFER = "defer"
    BOUNCE = "bounce"
    GREYLIST = "greylist"
    ACCEPT_THEN_DROP = "accept-then-drop"  # the message is kept, the 250 is lost
    ACCEPT_THEN_421 = "accept-then-421"  # the message is kept and answered, then an unasked 421
    TEMPFAIL = "tempfail"
    PERMFAIL = "permfail"
    SHUTDOWN = "421"  # the reply that closes the channel (RFC 5321 section 3.8)
    DROP = "drop"
    STALL = "stall"
    SLOW = "slow"
    NO_STARTTLS = "no-starttls"  # a server, or somebody on the way, that hides the offer
    NO_AUTH = "no-auth"
    CERT_EXPIRED = "cert-expired"
    CERT_WRONG_NAME = "cert-wrong-name"
    CERT_UNTRUSTED = "cert-untrusted"


class Mode(msgspec.Struct, frozen=True):
    """A parsed mode.

    `phase` limits a fault to one phase, `times` a refusal to the first so many (greylist: 1), `percent` (1 to 99) an answer
    to that share of the time.
    """

    name: ModeName
    phase: Phase | None = None
    times: int | None = None
    percent: int | None = None

    def __str__(self) -> str:
        times = f"-{self.times}x" if self.name is ModeName.DEFER and self.times is not None else ""
        chance = f"~{self.percent}%" if self.percent is not None else ""
        return f"{self.name}{times}" + (f"@{self.phase}" if self.phase else "") + chance


class UnknownModeError(ValueError):
    """Not a mode; the message lists the words there are."""


HEALTHY: Final[dict[Phase, Action]] = {
    Phase.GREETING: Action(220, f"{HOSTNAME} ESMTP Mailkeep sinkhole", takes=True),
    Phase.EHLO: Action(250, "HELP", takes=True),  # the last line; the session lists the extensions before it
    Phase.STARTTLS: Action(220, "2.0.0 Ready to start TLS", takes=True),
    Phase.TLS: Action(None, takes=True),
    Phase.AUTH: Action(235, "2.7.0 Authentication successful", takes=True),
    Phase.MAIL: Action(250, "2.1.0 Ok", takes=True),
    Phase.RCPT: Action(250, "2.1.5 Ok", takes=True),
    Phase.DATA: Action(354, "End data with <CR><LF>.<CR><LF>", takes=True),
    Phase.BODY: Action(None, takes=True),
    Phase.DOT: Action(250, "2.0.0 Ok", takes=True),
    Phase.QUIT: Action(221, "2.0.0 Bye", then=Then.CLOSE, takes=True),
}

SERVICE_CLOSING: Final = Action(421, "4.3.2 Service shutting down", then=Then.CLOSE)

_TEMPFAIL: Final = {
    Phase.GREETING: Action(421, "4.3.2 Service not available", then=Then.CLOSE),
    Phase.EHLO: Action(451, "4.3.0 Local error in processing"),
    Phase.STARTTLS: Action(454, "4.7.0 TLS not available"),
    # In clear, where a handshake is due; a close at once could outrun it.
    Phase.TLS: Action(454, "4.7.0 TLS not available", then=Then.STALL),
    Phase.AUTH: Action(454, "4.7.0 Temporary authentication failure"),
    Phase.MAIL: Action(451, "4.3.0 Local error in processing"),
    Phase.RCPT: Action(450, "4.2.0 Mailbox unavailable"),
    Phase.DATA: Action(451, "4.3.0 Local error in processing"),
    Phase.BODY: Action(452, "4.3.1 Insufficient system storage", then=Then.CLOSE),
    Phase.DOT: Action(451, "4.3.0 Local error in processing"),
    Phase.QUIT: Action(451, "4.3.0 Local error in processing", then=Then.CLOSE),
}
_PERMFAIL: Final = {
    Phase.GREETING: Action(554, "5.3.2 No SMTP service here", then=Then.CLOSE),
    Phase.EHLO: Action(502, "5.5.1 Command not implemented"),
    Phase.STARTTLS: Action(502, "5.5.1 Command not implemented"),
    Phase.TLS: Action(554, "5.7.0 No TLS here", then=Then.STALL),
    Phase.AUTH: Action(535, "5.7.8 Authentication credentials invalid"),
    Phase.MAIL: Action(550, "5.7.1 Sender refused"),
    Phase.RCPT: Action(550, "5.7.1 Recipient refused"),
    Phase.DATA: Action(554, "5.5.0 Transaction failed"),
    Phase.BODY: Action(552, "5.3.4 Message too big for system", then=Then.CLOSE),
    Phase.DOT: Action(554, "5.6.0 Message refused"),
    Phase.QUIT: Action(554, "5.5.0 Transaction failed", then=Then.CLOSE),
}
_FAULTS: Final[dict[ModeName, dict[Phase, Action]]] = {
    ModeName.TEMPFAIL: _TEMPFAIL,
    ModeName.PERMFAIL: _PERMFAIL,
    ModeName.SHUTDOWN: dict.fromkeys(HEALTHY, SERVICE_CLOSING),
    ModeName.DROP: dict.fromkeys(HEALTHY, Action(None, then=Then.CLOSE)),
    ModeName.STALL: dict.fromkeys(HEALTHY, Action(None, then=Then.STALL))
    | {Phase.BODY: Action(None, then=Then.FREEZE)},
    ModeName.SLOW: {
        phase: msgspec.structs.replace(action, delay_s=SLOW_REPLY_S) for phase, action in HEALTHY.items()
    },
}
"""Modes that may be limited to a phase."""

CERTIFICATES: Final = frozenset({ModeName.CERT_EXPIRED, ModeName.CERT_WRONG_NAME, ModeName.CERT_UNTRUSTED})
"""Modes that show another certificate; they need a sinkhole that offers TLS."""
OFFERS: Final = CERTIFICATES | {ModeName.NO_STARTTLS, ModeName.NO_AUTH}
"""Modes that answer as a healthy server and offer or show something else."""

_ROWS: Final[dict[ModeName, dict[Phase, Action]]] = _FAULTS | {
    ModeName.ACCEPT: {},
    ModeName.ACCEPT_LOG: {},
    ModeName.DEFER: {Phase.RCPT: Action(421, "4.3.2 Service temporarily unavailable")},
    ModeName.BOUNCE: {Phase.RCPT: Action(550, "5.1.1 No such user here")},
    ModeName.GREYLIST: {Phase.RCPT: Action(421, "4.7.1 Greylisted, please try again later")},
    ModeName.ACCEPT_THEN_DROP: {Phase.DOT: Action(None, then=Then.CLOSE, takes=True)},
    ModeName.ACCEPT_THEN_421: {Phase.DOT: Action(250, "2.0.0 Ok", then=Then.LEAVE, takes=True)},
    # What these offer and show is the session's business; they answer as a healthy server.
    **{name: {} for name in OFFERS},
}
SURE: Final = frozenset({ModeName.ACCEPT, ModeName.ACCEPT_LOG, ModeName.GREYLIST, *OFFERS})
"""Modes that nothing is left to chance in."""

_MODE: Final = re.compile(
    r"(?P<name>[a-z0-9-]+?)(?:-(?P<times>[1-9][0-9]{0,3})x)?(?:@(?P<phase>[a-z]+))?(?:~(?P<percent>[1-9][0-9]?)%)?"
)


def is_of_phase(name: ModeName) -> bool:
    """Whether a mode may be limited to a phase."""
    return name in _FAULTS


def parse_mode(text: str) -> Mode:
    """Return the mode written in `text` (case and surrounding space don't matter). Raises `UnknownModeError`."""
    match = _MODE.fullmatch(text.strip().lower()) if len(text) <= MAX_MODE_CHARS else None
    if not match:
        raise UnknownModeError(_known_modes())
    name, times, phase, percent = match.group("name", "times", "phase", "percent")
    known = name in _ROWS and (phase is None or (name in _FAULTS and phase in HEALTHY))
    if not known or (times and name != ModeName.DEFER) or (percent and (times or name in SURE)):
        raise UnknownModeError(_known_modes())
    count = 1 if name == ModeName.GREYLIST else int(times) if times else None
    return Mode(ModeName(name), Phase(phase) if phase else None, count, int(percent) if percent else None)


def mode_of(mode: Mode, recipient: str) -> Mode:
    """Return the mode in force for `recipient`: its own script if its address carries one, else `mode`."""
    if "+" not in recipient:
        return mode
    local, _, domain = recipient.lower().rpartition("@")
    word, plus, _ = local.partition("+")
    if not plus or not is_sinkhole(domain):
        return mode
    try:
        return parse_mode(word.replace(".", "@", 1))
    except UnknownModeError:
        return mode


def draw(seed: int, *words: str) -> float:
    """Return a number from 0 to below 1 that follows from `seed` and `words` alone.

    A generator with a state would deal other numbers as soon as two connections took turns in another way.
    """
    octets = hashlib.blake2b("\0".join((str(seed), *words)).encode(), digest_size=8).digest()
    return int.from_bytes(octets, "big") / 2**64


def answer(mode: Mode, phase: Phase, recipient: str = "", seen_count: int = 0, drawn: float = 0.0) -> Action:
    """Return what to do in `phase`, which is one of `HEALTHY`.

    `recipient` is the one offered (RCPT) or the first accepted one (DATA and later); `seen_count` is how often it was
    offered before while a mode with `times` was in force for it; `drawn`, from 0 to below 1, decides where `percent` does.
    """
    mode = mode_of(mode, recipient)
    spent = mode.times is not None and seen_count >= mode.times
    elsewhere = mode.phase is not None and mode.phase is not phase
    spared = mode.percent is not None and drawn * 100 >= mode.percent
    if spent or elsewhere or spared:
        return HEALTHY[phase]
    return _ROWS[mode.name].get(phase, HEALTHY[phase])


def describe(mode: Mode) -> str:
    """Return one line for a person: at which phases `mode` differs from a healthy server, and how."""
    odd = {phase: action for phase in HEALTHY if (action := answer(mode, phase)) != HEALTHY[phase]}
    words = "; ".join(f"{phase}: {_described(action)}" for phase, action in odd.items())
    often = f", {mode.percent} % of the time" if mode.percent is not None else ""
    return (words or _OFFER_WORDS.get(mode.name, "accepts everything")) + often


def _described(action: Action) -> str:
    reply = action.reply or "no reply"
    delay = f" after {action.delay_s:g} s" if action.delay_s else ""
    return reply + delay + ("" if action.then is Then.KEEP else f", then {action.then}")


_OFFER_WORDS: Final = {
    ModeName.NO_STARTTLS: "accepts everything and does not offer STARTTLS",
    ModeName.NO_AUTH: "accepts everything and does not offer AUTH",
    ModeName.CERT_EXPIRED: "shows a certificate that has expired",
    ModeName.CERT_WRONG_NAME: "shows a certificate of another name",
    ModeName.CERT_UNTRUSTED: "shows a certificate of an authority that nobody knows",
}


def _known_modes() -> str:
    return (
        f"a mode is one of: {', '.join(ModeName)}; {ModeName.DEFER} may be limited like {ModeName.DEFER}-3x, "
        f"{', '.join(_FAULTS)} to a phase like {ModeName.DROP}@dot ({', '.join(HEALTHY)}), "
        f"and what refuses or fails to a share of the time like {ModeName.TEMPFAIL}@rcpt~25%"
    )
