"""What next hops can do to us, one row each: how the server behaves, and what the attempt, the mail and the connection come to.

`test_hostile_servers.py` plays each row against the real client; `docs/generate.py` prints them. The numbers are for
reference only. At the end, by their tests: what messages can try.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from smtp_servers import EHLO, EHLO_BARE, MESSAGE, PASSWORD, USERNAME, Act, Drip, Flood, Last, mail

from mailkeep.core.delivery import AttemptStatus, Certainty
from mailkeep.core.outcome import Phase, Scope, Severity
from mailkeep.smtp.envelope import Envelope
from mailkeep.smtp.next_hop import AuthMechanism, TlsMode

GROUPS: Final = {
    "S1": "Not reached",
    "S2": "Silence",
    "S3": "One byte at a time",
    "S4": "Refusal at the door",
    "S5": "Garbage, and too much of it",
    "S6": "421 in the middle",
    "S7": "Close or reset without a word",
    "S8": "EHLO refused",
    "S9": "STARTTLS taken away",
    "S10": "Wrong certificate",
    "S11": "Weak TLS",
    "S12": "Bytes in clear before TLS",
    "S13": "Login",
    "S14": "Answers to MAIL",
    "S15": "Answers to RCPT",
    "S16": "Several recipients",
    "S17": "Suppressed by the provider",
    "S18": "Answers to DATA",
    "S19": "While the message flows",
    "S20": "Answers to the final dot",
    "S21": "Replies that nobody asked for",
    "S22": "QUIT",
    "S23": "A connection that died at rest",
    "S24": "Tarpit",
    "S25": "Lies about SIZE",
    "S26": "Extensions that are not offered",
    "S27": "Hostile text",
}


class Server(StrEnum):
    """What is behind the address of the hop."""

    SCRIPTED = "scripted"
    NOBODY = "nobody"  # no listener
    SILENT = "silent"  # a listener that takes no connection


class Connection(StrEnum):
    """What becomes of the connection."""

    KEPT = "kept"  # used again
    DROPPED = "dropped"
    NONE = "none"  # there was no session


class Then(StrEnum):
    """What becomes of the mail."""

    SENT = "sent"
    FAILED = "failed"
    SUPPRESSED = "suppressed"
    RUNG = "again, uses a rung"
    REST = "the rest again at once"
    PARKED = "parked, uses no rung"
    IN_DOUBT = "again, uses a rung; `at_most_once`: held"


class Proof(StrEnum):
    """The certificate of a server, and what is wrong with it."""

    RIGHT = "right"
    EXPIRED = "expired"
    EARLY = "early"
    SELF_SIGNED = "self-signed"
    STRANGER = "stranger"  # of an authority that is not trusted
    ELSEWHERE = "elsewhere"  # of another name
    COMMON_NAME = "common name"  # the name where it counted long ago
    WILDCARD = "wildcard"  # that does not cover the name
    WEAK = "weak"
    OLD_TLS = "old TLS"
    ANONYMOUS = "anonymous"  # none at all: a cipher without
    IN_CLEAR = "in clear"  # a cipher that hides nothing


@dataclass(frozen=True)
class End:
    """What an attempt must come to."""

    status: AttemptStatus
    phase: Phase
    certainty: Certainty
    severity: Severity
    scope: Scope
    rule: str
    then: Then


@dataclass(frozen=True)
class Scenario:
    """One row. Each of `scripts` is a server that behaves so; `words` has one for all of them, or one for each.

    `hop` and `timers` differ from a plain hop in clear. The peer never hears one of `never`.
    """

    number: str
    server: str
    end: End
    words: tuple[str, ...]
    connection: Connection
    kind: Server = Server.SCRIPTED
    scripts: tuple[Mapping[str, Any], ...] = ({},)
    tls: tuple[TlsMode, ...] = (TlsMode.NONE,)
    proof: Proof | None = None
    hop: Mapping[str, Any] = field(default_factory=dict)
    timers: Mapping[str, float] = field(default_factory=dict)
    envelope: Envelope = field(default_factory=mail)
    never: tuple[str, ...] = ()

    @property
    def floods(self) -> bool:
        """Whether the server sends more than anybody should keep."""
        return any(isinstance(answer, Flood) for script in self.scripts for answer in script.values())


def _end(status: AttemptStatus, phase: Phase, severity: Severity, scope: Scope, rule: str, then: Then) -> End:
    certainty = Certainty.DELIVERED if status is AttemptStatus.PROVIDER_ACCEPTED else Certainty.NOT_DELIVERED
    if severity is Severity.UNKNOWN:
        certainty = Certainty.UNKNOWN
    return End(status, phase, certainty, severity, scope, rule, then)


REFUSED, FAILED, LATE = (
    AttemptStatus.PROVIDER_REJECTED,
    AttemptStatus.TRANSPORT_FAILED,
    AttemptStatus.TIMED_OUT,
)


def out(phase: Phase, rule: str, status: AttemptStatus = FAILED) -> End:
    """An outage of the next hop."""
    return _end(status, phase, Severity.TRANSIENT, Scope.NEXT_HOP, rule, Then.PARKED)


def locked(phase: Phase, rule: str, status: AttemptStatus = REFUSED) -> End:
    """Trouble with our login there."""
    return _end(status, phase, Severity.TRANSIENT, Scope.CREDENTIAL, rule, Then.PARKED)


def deferred(phase: Phase, rule: str, scope: Scope, status: AttemptStatus = REFUSED) -> End:
    """Not now."""
    return _end(status, phase, Severity.TRANSIENT, scope, rule, Then.RUNG)


def refused(phase: Phase, rule: str, scope: Scope, then: Then = Then.FAILED) -> End:
    """Never."""
    return _end(REFUSED, phase, Severity.PERMANENT, scope, rule, then)


def unknown(status: AttemptStatus = FAILED, rule: str = "reply_lost") -> End:
    """Nobody can know."""
    return _end(status, Phase.DOT, Severity.UNKNOWN, Scope.MESSAGE, rule, Then.IN_DOUBT)


def lost(phase: Phase, status: AttemptStatus = FAILED) -> End:
    """The connection was lost, or nothing came over it, in `phase`."""
    if phase is Phase.DOT:
        return unknown(status)
    if phase in (Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.BODY):
        return deferred(phase, "lost_before_dot", Scope.MESSAGE, status)
    return out(phase, "lost_before_mail", status)


def broken(phase: Phase) -> End:
    """The protocol was broken in `phase`."""
    return unknown() if phase is Phase.DOT else out(phase, "broken_protocol")


DELIVERED = _end(
    AttemptStatus.PROVIDER_ACCEPTED, Phase.DOT, Severity.SUCCESS, Scope.MESSAGE, "delivered", Then.SENT
)
TAKEN = "250 2.0.0 taken"
CLOSED, RESET = "the next hop closed the connection", "the next hop reset the connection"
SILENCE = "no reply in time"
BROKEN = "the next hop broke the protocol: "
LOGIN = {"username": USERNAME, "password": PASSWORD}
EHLO_LOGIN = b"250-peer.test\r\n250-PIPELINING\r\n250 AUTH PLAIN\r\n"
EHLO_TLS = b"250-peer.test\r\n250 STARTTLS\r\n"
REFUSED_MAIL = {"rcpt": b"503 5.5.1 MAIL first\r\n", "data": b"503 5.5.1 RCPT first\r\n"}
THREE = mail("a@example.test", "b@example.test", "c@example.test")
LARGE = b"Subject: large\r\n\r\n" + (b"x" * 76 + b"\r\n") * 100_000  # more than the kernels buffer
ECHO = b"AGFubgBhIGNhbmFyeSBwYXNzdzByZA=="  # what PLAIN says for that login
ANSWERS = ("YW5U", "YSBJYW5HCNKGCGFZC3CWCMQ=")  # what LOGIN says for it, as a peer reads it
BOTH_TLS = (TlsMode.STARTTLS, TlsMode.IMPLICIT)
MEGABYTE = 1024 * 1024
MAX_TRACED_BYTES: Final = 50_000_000
"""While a server floods us, with all that the test itself holds."""


def offering(*extensions: bytes) -> bytes:
    """An answer to EHLO."""
    return b"".join(b"250-" + line + b"\r\n" for line in (b"peer.test", *extensions[:-1])) + (
        b"250 " + extensions[-1] + b"\r\n"
    )


def row(
    number: str,
    server: str,
    end: End,
    words: str | tuple[str, ...],
    connection: Connection = Connection.DROPPED,
    *,
    scripts: tuple[Mapping[str, Any], ...] = (),
    **more: Any,
) -> Scenario:
    """Build a row; what a scenario does not know itself is the script."""
    known = {name: more.pop(name) for name in [*more] if name in Scenario.__dataclass_fields__}
    return Scenario(
        number=number,
        server=server,
        end=end,
        words=(words,) if isinstance(words, str) else words,
        connection=connection,
        scripts=scripts or (more,),
        **known,
    )


# Where each phase is in a script, and what brings the client there.
PLACES: Final[Mapping[str, tuple[Phase, str, dict[str, Any]]]] = {
    "greeting": (Phase.GREETING, "instead of a greeting", {}),
    "ehlo": (Phase.EHLO, "after EHLO", {}),
    "starttls": (Phase.STARTTLS, "after STARTTLS", {"ehlo": EHLO_TLS, "tls": (TlsMode.STARTTLS,)}),
    "handshake": (Phase.TLS, "in the handshake", {"ehlo": EHLO_TLS, "tls": (TlsMode.STARTTLS,)}),
    "auth": (Phase.AUTH, "after AUTH", {"ehlo": EHLO_LOGIN, "hop": LOGIN}),
    "mail": (Phase.MAIL, "after MAIL", {}),
    "rcpt": (Phase.RCPT, "after RCPT", {}),
    "data": (Phase.DATA, "after DATA", {}),
    "body": (Phase.BODY, "while the message flows", {"ehlo": EHLO_BARE, "envelope": mail(message=LARGE)}),
    "dot": (Phase.DOT, "after the final dot", {}),
}


def at(
    number: str, place: str, doing: str, end: End, words: str | tuple[str, ...], *acts: Any, **more: Any
) -> Scenario:
    """A row about a server that does `acts`, any of them, at `place`."""
    _, where, there = PLACES[place]
    fields = {name: value for name, value in there.items() if name != "ehlo"}
    scripts = tuple(
        {key: value for key, value in there.items() if key == "ehlo"} | {place: act} for act in acts
    )
    return row(number, f"{doing} {where}", end, words, scripts=scripts, **(fields | more))


def _timer(place: str) -> str:
    return {"body": "block_s", "handshake": "starttls_s"}.get(place, f"{place}_s")


_DRIPPED = {"greeting": b"220-", "ehlo": b"250-", "mail": b"250-", "data": b"354-", "dot": b"250-"}
_SCOPES = {
    "mail": ("mail_sender_deferred", Scope.SENDER),
    "rcpt": ("rcpt_deferred", Scope.RECIPIENT),
    "data": ("message_closing", Scope.MESSAGE),
    "body": ("message_closing", Scope.MESSAGE),
    "dot": ("message_closing", Scope.MESSAGE),
}
_GOING_DOWN = "421 4.3.2 Service temporarily unavailable"


def _closing(place: str) -> Scenario:
    phase = PLACES[place][0]
    outage = out(phase, "next_hop_closing", REFUSED)
    end = deferred(phase, *_SCOPES[place]) if place in _SCOPES else outage
    reply = f"{_GOING_DOWN}\r\n".encode()
    acts = [Last(reply)] if place == "body" else [reply, Last(reply)]
    made = at("S6", place, "says 421", end, _GOING_DOWN, *acts, never=("QUIT", "RSET"))
    if place not in ("mail", "rcpt", "data", "dot"):
        return made
    one_by_one = tuple({"ehlo": EHLO_BARE} | script for script in made.scripts[:1])
    return Scenario(**(vars(made) | {"scripts": made.scripts + one_by_one}))


SCENARIOS: Final[tuple[Scenario, ...]] = (
    # -- S1
    row(
        "S1",
        "is not there: nobody listens",
        out(Phase.CONNECT, "no_connection"),
        "connection refused",
        Connection.NONE,
        kind=Server.NOBODY,
    ),
    row(
        "S1",
        "has a name that no name server knows, or that can't be one",
        out(Phase.CONNECT, "no_connection"),
        "the host name has no address",
        Connection.NONE,
        kind=Server.NOBODY,
        scripts=({"host": "nowhere.invalid"}, {"host": "a" * 70 + ".invalid"}),
    ),
    row(
        "S1",
        "does not take the connection",
        out(Phase.CONNECT, "no_connection", LATE),
        f"{SILENCE}: connecting",
        Connection.NONE,
        kind=Server.SILENT,
        timers={"connect_s": 0.4},
    ),
    # -- S2
    *(
        at("S2", place, "says nothing", lost(phase, LATE), SILENCE, Act.STALL, timers={_timer(place): 0.4})
        for place, (phase, *_) in PLACES.items()
        if place != "body"
    ),
    # -- S3
    *(
        at(
            "S3",
            place,
            "drips a reply without end",
            lost(PLACES[place][0], LATE),
            SILENCE,
            Drip(dripped + b"x" * 1000, 0.05),
            timers={_timer(place): 0.4},
        )
        for place, dripped in _DRIPPED.items()
    ),
    # -- S4
    row(
        "S4",
        "greets with 421",
        out(Phase.GREETING, "next_hop_closing", REFUSED),
        "421 4.3.2 busy, come back later",
        scripts=(
            {"greeting": b"421 4.3.2 busy, come back later\r\n"},
            {"greeting": Last(b"421 4.3.2 busy, come back later\r\n")},
        ),
        never=("EHLO", "QUIT"),
    ),
    row(
        "S4",
        "greets with 421, too many connections",
        out(Phase.GREETING, "next_hop_busy", REFUSED),
        "421 too many connections from you",
        greeting=b"421 too many connections from you\r\n",
    ),
    row(
        "S4",
        "greets with 554",
        out(Phase.GREETING, "next_hop_unwilling", REFUSED),
        "554 5.3.2 no SMTP service here",
        greeting=b"554 5.3.2 no SMTP service here\r\n",
    ),
    row(
        "S4",
        "greets with 521",
        out(Phase.GREETING, "next_hop_unwilling", REFUSED),
        "521 takes no mail",
        greeting=b"521 takes no mail\r\n",
    ),
    row(
        "S4",
        "greets with 554, you are listed",
        out(Phase.GREETING, "next_hop_distrusts_us", REFUSED),
        "554 5.7.1 blocked by a DNSBL",
        greeting=b"554 5.7.1 blocked by a DNSBL\r\n",
    ),
    # -- S5
    row(
        "S5",
        "is a web server",
        broken(Phase.GREETING),
        f"{BROKEN}a line that is not an SMTP reply: HTTP/1.1 400 Bad Request",
        greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ),
    row(
        "S5",
        "is an SSH server",
        broken(Phase.GREETING),
        f"{BROKEN}a line that is not an SMTP reply: SSH-2.0-OpenSSH_9.6",
        greeting=b"SSH-2.0-OpenSSH_9.6\r\n",
    ),
    row(
        "S5",
        "greets with a line of 64 MiB",
        broken(Phase.GREETING),
        f"{BROKEN}a line that is too long: {'x' * 79}…",
        greeting=Flood(b"x" * MEGABYTE, 64, last=b"\r\n"),
    ),
    row(
        "S5",
        "greets with line after line, without end",
        broken(Phase.GREETING),
        f"{BROKEN}a reply that is too long: 220-welcome",
        greeting=Flood(b"220-welcome\r\n" * 1000),
    ),
    row(
        "S5",
        "greets, and greets, without end",
        broken(Phase.GREETING),
        f"{BROKEN}more replies than commands",
        greeting=Flood(b"220 welcome\r\n" * 1000),
    ),
    row(
        "S5",
        "offers 200,000 extensions",
        broken(Phase.EHLO),
        f"{BROKEN}a reply that is too long: 250-X-NEVER-ENDING",
        ehlo=Flood(b"250-X-NEVER-ENDING\r\n" * 1000, 200, last=b"250 HELP\r\n"),
    ),
    row(
        "S5",
        "ends its lines with LF alone",
        broken(Phase.EHLO),
        f"{BROKEN}a line that does not end in CR LF: 250 peer.test",
        ehlo=b"250 peer.test\n",
    ),
    row(
        "S5",
        "puts a NUL into a reply",
        broken(Phase.MAIL),
        f"{BROKEN}a NUL byte: 250 ok\\x00",
        mail=b"250 ok\0\r\n",
    ),
    row(
        "S5",
        "answers with two codes in one reply",
        broken(Phase.RCPT),
        f"{BROKEN}a multi-line reply with different codes: 550 b",
        rcpt=b"250-a\r\n550 b\r\n",
    ),
    row(
        "S5",
        "answers the final dot with 20 MB",
        unknown(),
        f"{BROKEN}a reply that is too long: 250-taken",
        dot=Flood(b"250-taken\r\n" * 1000, 20 * MEGABYTE // 11_000, last=b"250 taken\r\n"),
    ),
    # -- S6
    *map(_closing, ("ehlo", "starttls", "auth", "mail", "rcpt", "data", "body", "dot")),
    # -- S7
    *(
        at("S7", place, "closes or resets the connection", lost(phase), words, Act.CLOSE, Act.RESET)
        for place, (phase, *_) in PLACES.items()
        # Who closes with something unread resets; in the handshake event loops don't tell one from the other.
        for words in [RESET if phase in (Phase.BODY, Phase.TLS) else (CLOSED, RESET)]
    ),
    # -- S8
    row("S8", "refuses EHLO and takes HELO", DELIVERED, TAKEN, Connection.KEPT, ehlo=b"502 5.5.1 what?\r\n"),
    row(
        "S8",
        "refuses EHLO and takes HELO, where TLS is required",
        out(Phase.STARTTLS, "starttls_not_offered"),
        "STARTTLS is required but not offered",
        ehlo=b"502 5.5.1 what?\r\n",
        tls=(TlsMode.STARTTLS,),
        hop=LOGIN,
        never=("MAIL", "AUTH"),
    ),
    row(
        "S8",
        "refuses EHLO and HELO",
        out(Phase.EHLO, "next_hop_unwilling", REFUSED),
        "502 5.5.1 what?",
        ehlo=b"502 5.5.1 what?\r\n",
        helo=b"502 5.5.1 what?\r\n",
    ),
    # -- S9
    row(
        "S9",
        "does not offer STARTTLS any more",
        out(Phase.STARTTLS, "starttls_not_offered"),
        "STARTTLS is required but not offered",
        ehlo=offering(b"AUTH PLAIN"),
        tls=(TlsMode.STARTTLS,),
        hop=LOGIN,
        never=("MAIL", "AUTH"),
    ),
    row(
        "S9",
        "defers or refuses STARTTLS",
        out(Phase.STARTTLS, "starttls_refused", REFUSED),
        ("454 4.7.0 TLS not available", "502 5.5.1 what?"),
        scripts=(
            {"ehlo": EHLO_TLS, "starttls": b"454 4.7.0 TLS not available\r\n"},
            {"ehlo": EHLO_TLS, "starttls": b"502 5.5.1 what?\r\n"},
        ),
        tls=(TlsMode.STARTTLS,),
        hop=LOGIN,
        never=("MAIL", "AUTH"),
    ),
    row(
        "S9",
        "does not offer STARTTLS, or defers it, where TLS is a wish (`opportunistic`)",
        DELIVERED,
        TAKEN,
        Connection.KEPT,
        scripts=({"ehlo": EHLO_BARE}, {"ehlo": EHLO_TLS, "starttls": b"454 4.7.0 TLS not available\r\n"}),
        tls=(TlsMode.OPPORTUNISTIC,),
    ),
    row(
        "S9",
        "answers the handshake with something else",
        out(Phase.TLS, "tls_failed"),
        "TLS failed: the server speaks no TLS here",
        ehlo=EHLO_TLS,
        handshake=b"garbage instead of a handshake\r\n",
        tls=(TlsMode.STARTTLS,),
        hop=LOGIN,
        never=("MAIL", "AUTH"),
    ),
    # -- S10
    *(
        row(
            "S10",
            f"shows {what}",
            out(Phase.TLS, "tls_failed"),
            f"TLS failed: {words}",
            ehlo=EHLO_TLS,
            tls=(*BOTH_TLS, TlsMode.OPPORTUNISTIC),
            proof=proof,
            hop=LOGIN,
            never=("MAIL", "AUTH"),
        )
        for proof, what, words in (
            (Proof.EXPIRED, "a certificate that has expired", "certificate has expired"),
            (Proof.EARLY, "a certificate that is not valid yet", "certificate is not yet valid"),
            (Proof.SELF_SIGNED, "a certificate that it signed itself", "self-signed certificate"),
            (
                Proof.STRANGER,
                "a certificate of an authority that is not trusted",
                "unable to get local issuer certificate",
            ),
            (
                Proof.ELSEWHERE,
                "a certificate for another name",
                "Hostname mismatch, certificate is not valid for 'localhost'.",
            ),
            (
                Proof.COMMON_NAME,
                "a certificate with its name in the subject alone",
                "Hostname mismatch, certificate is not valid for 'localhost'.",
            ),
            (
                Proof.WILDCARD,
                "a wildcard that does not cover its name",
                "Hostname mismatch, certificate is not valid for 'localhost'.",
            ),
            (Proof.WEAK, "a certificate with a key of 1024 bits", "EE certificate key too weak"),
        )
    ),
    row(
        "S10",
        "shows another certificate than the pinned one",
        out(Phase.TLS, "tls_failed"),
        "TLS failed: the certificate is not the pinned one",
        ehlo=EHLO_TLS,
        tls=BOTH_TLS,
        proof=Proof.RIGHT,
        hop=LOGIN | {"fingerprints": ("ab" * 32,)},
        never=("MAIL", "AUTH"),
    ),
    # -- S11
    row(
        "S11",
        "speaks TLS 1.1 at most",
        out(Phase.TLS, "tls_failed"),
        "TLS failed: the server speaks no TLS 1.2 or newer",
        ehlo=EHLO_TLS,
        tls=BOTH_TLS,
        proof=Proof.OLD_TLS,
        never=("MAIL",),
    ),
    *(
        row(
            "S11",
            f"takes only ciphers {what}",
            out(Phase.TLS, "tls_failed"),
            "TLS failed: the server takes none of our ciphers",
            ehlo=EHLO_TLS,
            tls=BOTH_TLS,
            proof=proof,
            never=("MAIL",),
        )
        for proof, what in ((Proof.ANONYMOUS, "without a certificate"), (Proof.IN_CLEAR, "that hide nothing"))
    ),
    # -- S12
    row(
        "S12",
        "slips a reply in clear behind its 220 to STARTTLS",
        broken(Phase.STARTTLS),
        f"{BROKEN}more replies than commands",
        ehlo=EHLO_TLS,
        starttls=b"220 go on\r\n250 injected\r\n",
        tls=(TlsMode.STARTTLS,),
        hop=LOGIN,
        never=("MAIL", "AUTH"),
    ),
    row(
        "S12",
        "slips half a reply in clear behind it",
        broken(Phase.STARTTLS),
        f"{BROKEN}more replies than commands",
        ehlo=EHLO_TLS,
        starttls=b"220 go on\r\n250-inj",
        tls=(TlsMode.STARTTLS,),
        hop=LOGIN,
        never=("MAIL", "AUTH"),
    ),
    row(
        "S12",
        "greets in clear on a port for TLS",
        out(Phase.TLS, "tls_failed"),
        "TLS failed: the server speaks no TLS here",
        tls=(TlsMode.IMPLICIT,),
        hop=LOGIN,
        never=("EHLO",),
    ),
    # -- S13
    row(
        "S13",
        "offers no login",
        locked(Phase.AUTH, "login_not_offered", FAILED),
        "no way to log in that this hop may use is offered: the next hop offers none",
        hop=LOGIN,
        never=("MAIL", "AUTH"),
    ),
    row(
        "S13",
        "offers only ways to log in that we don't know",
        locked(Phase.AUTH, "login_not_offered", FAILED),
        "no way to log in that this hop may use is offered: the next hop offers GSSAPI NTLM",
        ehlo=offering(b"AUTH NTLM GSSAPI"),
        hop=LOGIN,
        never=("MAIL", "AUTH"),
    ),
    row(
        "S13",
        "offers a login in clear and none behind TLS",
        locked(Phase.AUTH, "login_not_offered", FAILED),
        "no way to log in that this hop may use is offered: the next hop offers none",
        ehlo=(offering(b"STARTTLS", b"AUTH PLAIN"), EHLO_BARE),
        tls=(TlsMode.STARTTLS,),
        proof=Proof.RIGHT,
        hop=LOGIN,
        never=("MAIL", "AUTH"),
    ),
    row(
        "S13",
        "offers a login in clear only, where TLS is a wish (`opportunistic`)",
        locked(Phase.AUTH, "login_in_clear", FAILED),
        "a login is never sent where TLS does not protect and verify it",
        ehlo=offering(b"AUTH PLAIN"),
        tls=(TlsMode.OPPORTUNISTIC,),
        hop=LOGIN,
        never=("MAIL", "AUTH"),
    ),
    *(
        row(
            "S13",
            f"answers AUTH with {reply[:3]}",
            locked(Phase.AUTH, "login_refused"),
            reply,
            ehlo=EHLO_LOGIN,
            auth=f"{reply}\r\n".encode(),
            hop=LOGIN,
            never=("MAIL",),
        )
        for reply in ("535 5.7.8 wrong password", "534 5.7.9 too weak a mechanism")
    ),
    row(
        "S13",
        "answers AUTH with 454",
        out(Phase.AUTH, "login_deferred", REFUSED),
        "454 4.7.0 no login just now",
        ehlo=EHLO_LOGIN,
        auth=b"454 4.7.0 no login just now\r\n",
        hop=LOGIN,
        never=("MAIL",),
    ),
    row(
        "S13",
        "repeats the login in its refusal",
        locked(Phase.AUTH, "login_refused"),
        ("500 5.5.1 what is AUTH PLAIN …?", "535 5.7.8 … is not the password of ann"),
        scripts=(
            {"ehlo": EHLO_LOGIN, "auth": b"500 5.5.1 what is AUTH PLAIN " + ECHO + b"?\r\n"},
            {"ehlo": EHLO_LOGIN, "auth": f"535 5.7.8 {PASSWORD} is not the password of ann\r\n".encode()},
        ),
        hop=LOGIN,
        never=("MAIL",),
    ),
    row(
        "S13",
        "repeats the login in something that is no reply",
        broken(Phase.AUTH),
        f"{BROKEN}a line that is not an SMTP reply",
        ehlo=EHLO_LOGIN,
        auth=b"AUTH PLAIN " + ECHO + b"\r\n",
        hop=LOGIN,
        never=("MAIL",),
    ),
    row(
        "S13",
        "asks on and on (334)",
        out(Phase.AUTH, "unexpected_reply", REFUSED),
        "334 more?",
        scripts=(
            {"ehlo": EHLO_LOGIN, "auth": b"334 more?\r\n"},
            {"ehlo": offering(b"AUTH LOGIN"), "auth": b"334 more?\r\n"}
            | dict.fromkeys(ANSWERS, b"334 more?\r\n"),
        ),
        hop=LOGIN,
        never=("MAIL",),
    ),
    row(
        "S13",
        "sends a challenge that makes no sense",
        broken(Phase.AUTH),
        f"{BROKEN}a challenge that is not base64",
        ehlo=offering(b"AUTH CRAM-MD5"),
        auth=b"334 *!*\r\n",
        hop=LOGIN | {"auth": (AuthMechanism.CRAM_MD5,)},
        never=("MAIL",),
    ),
    # -- S14
    row(
        "S14",
        "defers the sender",
        deferred(Phase.MAIL, "mail_sender_deferred", Scope.SENDER),
        "451 4.3.0 later",
        Connection.KEPT,
        **REFUSED_MAIL | {"mail": b"451 4.3.0 later\r\n"},
    ),
    row(
        "S14",
        "refuses the sender",
        refused(Phase.MAIL, "mail_sender_refused", Scope.SENDER),
        "550 5.7.1 not you",
        Connection.KEPT,
        scripts=(
            REFUSED_MAIL | {"mail": b"550 5.7.1 not you\r\n"},
            {"ehlo": EHLO_BARE, "mail": b"550 5.7.1 not you\r\n"},
        ),
    ),
    row(
        "S14",
        "refuses the sender, yet takes the recipient and asks for the message",
        refused(Phase.MAIL, "mail_sender_refused", Scope.SENDER),
        "550 5.7.1 not you",
        mail=b"550 5.7.1 not you\r\n",
        never=(".", "RSET", "QUIT"),
    ),
    row(
        "S14",
        "wants a login that we were not told of (530)",
        locked(Phase.MAIL, "login_required"),
        "530 5.7.0 Authentication required",
        Connection.KEPT,
        **REFUSED_MAIL | {"mail": b"530 5.7.0 Authentication required\r\n"},
    ),
    row(
        "S14",
        "wants TLS that we were told not to use",
        out(Phase.MAIL, "tls_required", REFUSED),
        "530 5.7.0 Must issue a STARTTLS command first",
        Connection.KEPT,
        **REFUSED_MAIL | {"mail": b"530 5.7.0 Must issue a STARTTLS command first\r\n"},
    ),
    row(
        "S14",
        "has lost track (503)",
        deferred(Phase.MAIL, "out_of_sequence", Scope.MESSAGE),
        "503 5.5.1 nested MAIL",
        Connection.KEPT,
        **REFUSED_MAIL | {"mail": b"503 5.5.1 nested MAIL\r\n"},
    ),
    row(
        "S14",
        "answers MAIL with 1yz or 3yz",
        broken(Phase.MAIL),
        (f"{BROKEN}unexpected 100 hm", f"{BROKEN}unexpected 354 go on"),
        scripts=({"mail": b"100 hm\r\n"}, {"mail": b"354 go on\r\n"}),
        never=("QUIT",),
    ),
    row(
        "S14",
        "answers MAIL with 666",
        broken(Phase.MAIL),
        f"{BROKEN}a reply code outside 100 to 599: 666 evil",
        mail=b"666 evil\r\n",
        never=("QUIT",),
    ),
    # -- S15
    row(
        "S15",
        "accepts with 251 or 252",
        DELIVERED,
        TAKEN,
        Connection.KEPT,
        scripts=({"rcpt": b"251 will forward\r\n"}, {"rcpt": b"252 can not verify\r\n"}),
    ),
    *(
        row(
            "S15",
            what,
            end,
            reply,
            Connection.KEPT,
            scripts=(
                {"rcpt": f"{reply}\r\n".encode(), "data": b"554 5.5.1 no valid recipients\r\n"},
                {"rcpt": f"{reply}\r\n".encode(), "dot": b"554 5.5.1 no valid recipients\r\n"},
                {"rcpt": f"{reply}\r\n".encode(), "ehlo": EHLO_BARE},
            ),
        )
        for what, reply, end in (
            (
                "knows no such mailbox: the address is good for nothing",
                "550 5.1.1 user unknown",
                refused(Phase.RCPT, "rcpt_mailbox_gone", Scope.RECIPIENT),
            ),
            (
                "says that the mailbox is full, for good",
                "552 5.2.2 mailbox full",
                refused(Phase.RCPT, "rcpt_over_quota_for_good", Scope.RECIPIENT),
            ),
            (
                "refuses the recipient by its rules",
                "550 5.7.1 not from outside",
                refused(Phase.RCPT, "rcpt_policy", Scope.RECIPIENT),
            ),
            (
                "takes no mail for that domain (556)",
                "556 5.1.10 domain takes no mail",
                refused(Phase.RCPT, "rcpt_mailbox_gone", Scope.RECIPIENT),
            ),
            (
                "defers the recipient",
                "450 4.2.0 mailbox busy",
                deferred(Phase.RCPT, "rcpt_deferred", Scope.RECIPIENT),
            ),
            (
                "greylists us",
                "451 4.7.1 greylisted, try again in 5 minutes",
                deferred(Phase.RCPT, "rcpt_greylisted", Scope.RECIPIENT),
            ),
        )
    ),
    row(
        "S15",
        "takes a message for nobody: refuses the recipient, then takes the empty end",
        refused(Phase.RCPT, "rcpt_mailbox_gone", Scope.RECIPIENT),
        "550 5.1.1 user unknown",
        Connection.KEPT,
        rcpt=b"550 5.1.1 user unknown\r\n",
    ),
    # -- S16
    row(
        "S16",
        "takes one of three recipients, refuses one, defers one",
        _end(
            AttemptStatus.PROVIDER_ACCEPTED,
            Phase.DOT,
            Severity.TRANSIENT,
            Scope.RECIPIENT,
            "rcpt_deferred",
            Then.RUNG,
        ),
        "450 4.2.0 mailbox busy",
        Connection.KEPT,
        rcpt=(b"250 ok\r\n", b"550 5.1.1 user unknown\r\n", b"450 4.2.0 mailbox busy\r\n"),
        envelope=THREE,
    ),
    row(
        "S16",
        "takes two recipients at a time",
        _end(
            AttemptStatus.PROVIDER_ACCEPTED,
            Phase.DOT,
            Severity.TRANSIENT,
            Scope.RECIPIENT,
            "rcpt_too_many",
            Then.REST,
        ),
        "452 4.5.3 too many recipients",
        Connection.KEPT,
        rcpt=(b"250 ok\r\n", b"250 ok\r\n", b"452 4.5.3 too many recipients\r\n"),
        envelope=THREE,
    ),
    row(
        "S16",
        "refuses one recipient and hangs up after the final dot",
        unknown(),
        CLOSED,
        rcpt=(b"250 ok\r\n", b"550 5.1.1 user unknown\r\n", b"250 ok\r\n"),
        dot=Act.CLOSE,
        envelope=THREE,
    ),
    # -- S17
    row(
        "S17",
        "has the recipient on a list of its own",
        refused(Phase.RCPT, "rcpt_provider_suppressed", Scope.REPUTATION, Then.SUPPRESSED),
        "550 5.1.1 recipient is on our suppression list",
        Connection.KEPT,
        rcpt=b"550 5.1.1 recipient is on our suppression list\r\n",
        data=b"554 5.5.1 no valid recipients\r\n",
    ),
    # -- S18
    row(
        "S18",
        "defers DATA",
        deferred(Phase.DATA, "message_deferred", Scope.MESSAGE),
        "451 4.3.0 disk is full",
        Connection.KEPT,
        data=b"451 4.3.0 disk is full\r\n",
        never=(".",),
    ),
    row(
        "S18",
        "refuses DATA",
        refused(Phase.DATA, "message_refused", Scope.MESSAGE),
        "554 5.6.0 no",
        Connection.KEPT,
        data=b"554 5.6.0 no\r\n",
        never=(".",),
    ),
    row(
        "S18",
        "answers DATA with 250: it waits for commands, not for a message",
        broken(Phase.DATA),
        f"{BROKEN}unexpected 250 fine",
        data=b"250 fine\r\n",
        never=(".", "RSET", "QUIT"),
    ),
    # -- S19
    row(
        "S19",
        "stops reading",
        lost(Phase.BODY, LATE),
        SILENCE,
        ehlo=EHLO_BARE,
        body=Act.STALL,
        envelope=mail(message=LARGE),
        timers={"block_s": 0.4},
        never=(".",),
    ),
    row(
        "S19",
        "refuses while it reads; it may hang up behind that",
        refused(Phase.BODY, "message_too_large", Scope.MESSAGE),
        "552 5.3.4 too big",
        scripts=tuple(
            {"ehlo": EHLO_BARE, "body": body}
            for body in (b"552 5.3.4 too big\r\n", Last(b"552 5.3.4 too big\r\n", Act.RESET))
        ),
        envelope=mail(message=LARGE),
        never=(".", "RSET", "QUIT"),
    ),
    row(
        "S19",
        "says 250 before it has the message",
        broken(Phase.BODY),
        f"{BROKEN}unexpected 250 2.0.0 taken",
        ehlo=EHLO_BARE,
        body=b"250 2.0.0 taken\r\n",
        envelope=mail(message=LARGE),
        never=(".", "RSET", "QUIT"),
    ),
    # -- S20
    row(
        "S20",
        "takes it with another 2yz, with several lines, with a code alone, or with an enhanced code that says otherwise",
        DELIVERED,
        ("299 odd", "250 two lines", "250", "250 5.7.1 taken", "250 grüße \\xff"),
        Connection.KEPT,
        scripts=tuple(
            {"dot": dot}
            for dot in (
                b"299 odd\r\n",
                b"250-two\r\n250 lines\r\n",
                b"250\r\n",
                b"250 5.7.1 taken\r\n",
                "250 grüße ".encode() + b"\xff\r\n",
            )
        ),
    ),
    row(
        "S20",
        "defers it",
        deferred(Phase.DOT, "message_deferred", Scope.MESSAGE),
        "451 4.3.0 later",
        Connection.KEPT,
        dot=b"451 4.3.0 later\r\n",
    ),
    row(
        "S20",
        "refuses it",
        refused(Phase.DOT, "message_refused", Scope.MESSAGE),
        ("554 5.6.0 no", "554 2.0.0 taken after all"),
        Connection.KEPT,
        scripts=({"dot": b"554 5.6.0 no\r\n"}, {"dot": b"554 2.0.0 taken after all\r\n"}),
    ),
    row(
        "S20",
        "refuses it by its rules",
        refused(Phase.DOT, "message_policy", Scope.MESSAGE),
        "550 5.7.1 looks like junk",
        Connection.KEPT,
        dot=b"550 5.7.1 looks like junk\r\n",
    ),
    row(
        "S20",
        "answers with 1yz or 3yz",
        unknown(REFUSED, "reply_unreadable"),
        ("100 hm", "354 again"),
        scripts=({"dot": b"100 hm\r\n"}, {"dot": b"354 again\r\n"}),
    ),
    row(
        "S20",
        "answers with something that is no reply",
        unknown(),
        (
            f"{BROKEN}a line that is not an SMTP reply: 25 short",
            f"{BROKEN}a line that is not an SMTP reply: queued as 4711",
            f"{BROKEN}a multi-line reply with different codes: 550 b",
            f"{BROKEN}a reply code outside 100 to 599: 666 evil",
            f"{BROKEN}a line that does not end in CR LF: 250 taken",
        ),
        scripts=tuple(
            {"dot": dot}
            for dot in (
                b"25 short\r\n",
                b"queued as 4711\r\n",
                b"250-a\r\n550 b\r\n",
                b"666 evil\r\n",
                b"250 taken\n",
            )
        ),
    ),
    row(
        "S20",
        "answers with half a reply and hangs up",
        unknown(),
        CLOSED,
        scripts=({"dot": Last(b"250 tak")}, {"dot": Last(b"250-taken\r\n")}),
    ),
    # -- S21
    row(
        "S21",
        "greets twice",
        broken(Phase.GREETING),
        f"{BROKEN}more replies than commands",
        greeting=b"220 hi\r\n220 hi\r\n",
        never=("MAIL",),
    ),
    row(
        "S21",
        "answers EHLO twice",
        broken(Phase.EHLO),
        f"{BROKEN}more replies than commands",
        ehlo=EHLO + b"250 ok\r\n",
        never=("MAIL",),
    ),
    row(
        "S21",
        "answers MAIL twice, so that its refusal of the recipient seems to answer DATA",
        broken(Phase.DATA),
        f"{BROKEN}more replies than commands",
        mail=b"250 ok\r\n250 ok\r\n",
        rcpt=b"550 5.1.1 user unknown\r\n",
        never=(".",),
    ),
    row(
        "S21",
        "takes the message, or half says so, before it has it, and refuses it then",
        broken(Phase.DATA),
        f"{BROKEN}more replies than commands",
        scripts=(
            {"data": b"354 go on\r\n250 2.0.0 taken\r\n", "dot": b"554 no\r\n"},
            {"data": b"354 go on\r\n2", "dot": b"554 no\r\n"},
        ),
        never=(".",),
    ),
    row(
        "S21",
        "takes the message twice, or says 421 behind that",
        DELIVERED,
        TAKEN,
        scripts=tuple(
            {"dot": b"250 2.0.0 taken\r\n" + more} for more in (b"250 again\r\n", b"2", b"421 4.3.2 bye\r\n")
        ),
    ),
    # -- S22
    row(
        "S22",
        "closes, resets, refuses or babbles at QUIT",
        DELIVERED,
        TAKEN,
        scripts=tuple(
            {"quit": act}
            for act in (Act.CLOSE, Act.RESET, b"421 4.3.2 bye\r\n", b"500 what?\r\n", b"garbage\r\n")
        ),
        hop={"messages_per_connection": 1},
    ),
    row(
        "S22",
        "says nothing at QUIT",
        DELIVERED,
        TAKEN,
        quit=Act.STALL,
        hop={"messages_per_connection": 1},
        timers={"quit_s": 0.4},
    ),
    row(
        "S22",
        "says nothing, or something else, at RSET",
        refused(Phase.DATA, "message_refused", Scope.MESSAGE),
        "554 5.6.0 no",
        scripts=tuple(
            {"data": b"554 5.6.0 no\r\n", "rset": act}
            for act in (Act.STALL, Act.CLOSE, b"500 what?\r\n", b"250 ok\r\n250 ok\r\n")
        ),
        timers={"quit_s": 0.4},
    ),
    # -- S23
    row(
        "S23",
        "has forgotten the connection at its second use",
        DELIVERED,
        TAKEN,
        scripts=tuple(
            {"mail": (b"250 ok\r\n", act)} for act in (Act.CLOSE, Act.RESET, b"421 4.4.2 idle too long\r\n")
        ),
    ),
    row(
        "S23",
        "hangs up once it has taken a message",
        DELIVERED,
        TAKEN,
        scripts=({"dot": Last(b"250 2.0.0 taken\r\n")}, {"dot": Last(b"250 2.0.0 taken\r\n", Act.RESET)}),
    ),
    # -- S24
    row(
        "S24",
        "is slow, and each answer within its time",
        DELIVERED,
        TAKEN,
        Connection.KEPT,
        rcpt=Drip(b"250 ok\r\n", 0.03),
        envelope=mail("a@example.test", "b@example.test", "c@example.test", "d@example.test"),
    ),
    row(
        "S24",
        "is slow, each answer within its time, and all of them take too long",
        lost(Phase.RCPT, LATE),
        f"{SILENCE}: the whole session has lasted too long",
        rcpt=Drip(b"250 ok\r\n", 0.1),
        envelope=mail(*(f"r{number}@example.test" for number in range(100))),
        timers={"session_s": 1.5},
    ),
    row(
        "S24",
        "takes longer than that over the final dot",
        DELIVERED,
        TAKEN,
        Connection.KEPT,
        dot=Drip(b"250 2.0.0 taken\r\n", 0.1),
        timers={"session_s": 1.0},
    ),
    # -- S25
    row(
        "S25",
        "announces less than the message has",
        refused(Phase.MAIL, "too_large", Scope.MESSAGE),
        f"5.3.4 the message is larger than the next hop takes: {len(MESSAGE)} bytes, where 50 are the most",
        Connection.KEPT,
        ehlo=offering(b"SIZE 50"),
        never=("MAIL",),
    ),
    row(
        "S25",
        "announces more than it takes, and says so at MAIL",
        refused(Phase.MAIL, "mail_too_large", Scope.MESSAGE),
        "552 5.3.4 too big",
        Connection.KEPT,
        **REFUSED_MAIL | {"mail": b"552 5.3.4 too big\r\n"},
    ),
    row(
        "S25",
        "announces more than it takes, and says so at DATA",
        refused(Phase.DATA, "message_too_large", Scope.MESSAGE),
        "552 5.3.4 too big",
        Connection.KEPT,
        data=b"552 5.3.4 too big\r\n",
        never=(".",),
    ),
    row(
        "S25",
        "announces more than it takes, and says so after the final dot",
        refused(Phase.DOT, "message_too_large", Scope.MESSAGE),
        "552 5.3.4 too big",
        Connection.KEPT,
        dot=b"552 5.3.4 too big\r\n",
    ),
    row(
        "S25",
        "announces a size that is none",
        DELIVERED,
        TAKEN,
        Connection.KEPT,
        scripts=tuple(
            {"ehlo": offering(size)}
            for size in (b"SIZE", b"SIZE 0", b"SIZE -1", b"SIZE many", b"SIZE " + b"9" * 30)
        ),
    ),
    # -- S26
    row(
        "S26",
        "does not take UTF-8 in addresses, and one has it",
        refused(Phase.MAIL, "smtputf8_not_offered", Scope.MESSAGE),
        "5.6.7 an address needs SMTPUTF8, which is not offered",
        Connection.KEPT,
        envelope=mail("grün@example.test"),
        never=("MAIL",),
    ),
    row(
        "S26",
        "does not take 8-bit text, and the message has some",
        refused(Phase.MAIL, "8bitmime_not_offered", Scope.MESSAGE),
        "5.6.3 the message needs 8BITMIME, which is not offered",
        Connection.KEPT,
        ehlo=EHLO_BARE,
        envelope=mail(message="Subject: grüße\r\n\r\n".encode()),
        never=("MAIL",),
    ),
    # -- S27
    row(
        "S27",
        "writes terminal escapes, a line of a log and bytes that are no text",
        deferred(Phase.DATA, "message_deferred", Scope.MESSAGE),
        '451 4.3.0 \\x1b[2J\\r{"level": "error"} \\xff\\xfe \\u202e',
        Connection.KEPT,
        data=b'451 4.3.0 \x1b[2J\r{"level": "error"} \xff\xfe \xe2\x80\xae\r\n',
    ),
    row(
        "S27",
        "repeats the recipient's address",
        refused(Phase.RCPT, "rcpt_mailbox_gone", Scope.RECIPIENT),
        "550 5.1.1 <…@…>: user unknown",
        Connection.KEPT,
        rcpt=b"550 5.1.1 <to@example.test>: user unknown\r\n",
        data=b"554 5.5.1 no valid recipients\r\n",
    ),
)


@dataclass(frozen=True)
class Content:
    """What a message or an address can try, what prevents it, and the tests that show it, by file."""

    number: str
    attack: str
    answer: str
    tests: Mapping[str, tuple[str, ...]]


CONTENTS: Final = (
    Content(
        "M1",
        "Smuggling: a bare CR, LF or NUL in the message makes its end come early for the next server",
        "Line ends become CR LF or are encoded as the message is written; just before the wire what has a bare CR, LF or NUL is"
        " refused; dots are doubled",
        {
            "property/test_message_roundtrip.py": (
                "test_any_body_comes_back",
                "test_any_attachment_comes_back",
            ),
            "unit/test_smtp_envelope.py": (
                "test_a_message_with_a_bare_line_end_is_refused",
                "test_leading_dots_are_doubled",
            ),
            "property/test_smtp_properties.py": ("test_stuffing_is_undone_by_the_server",),
            "integration/test_smtp_servers.py": ("test_postfix_takes_the_mail_over_starttls_and_sasl",),
        },
    ),
    Content(
        "M2",
        "Header injection: control characters, line separators or encoded words in a subject, name, address or header",
        "Refused at intake and again by the writer; what looks encoded is encoded anew",
        {
            "unit/test_core_address.py": ("test_refuses_control_characters_everywhere",),
            "unit/test_message_writer.py": (
                "test_control_characters_are_refused",
                "test_further_headers_can_not_replace_the_writers_own",
                "test_a_subject_that_looks_encoded_is_encoded_anew",
            ),
            "property/test_message_roundtrip.py": (
                "test_any_subject_comes_back",
                "test_any_mailbox_comes_back",
            ),
        },
    ),
    Content(
        "M3",
        "Envelope injection: an address that ends its command and begins another",
        "Refused at intake, and again before a connection is opened",
        {
            "unit/test_core_address.py": ("test_refuses_header_and_command_injection",),
            "unit/test_smtp_envelope.py": ("test_addresses_that_would_break_a_command_do_not",),
            "property/test_smtp_properties.py": ("test_no_address_breaks_out_of_its_command",),
            "integration/test_smtp_faults.py": ("test_an_unsafe_envelope_never_reaches_the_wire",),
        },
    ),
    Content(
        "M4",
        "Lines of more than 998 octets, 8-bit text, addresses in UTF-8",
        "Encoded; addresses in UTF-8 go where SMTPUTF8 is offered and fail for good elsewhere (S26)",
        {
            "property/test_message_roundtrip.py": (
                "test_any_body_comes_back",
                "test_utf8_addresses_stand_in_the_header",
            ),
            "unit/test_message_writer.py": (
                "test_the_encoding_follows_the_content",
                "test_long_lists_of_addresses_fold",
            ),
            "integration/test_smtp_faults.py": ("test_an_internationalised_address_goes_as_utf8",),
        },
    ),
    Content(
        "M5",
        "MIME bombs: boundaries in the content, messages as attachments, too many or too large parts and headers",
        "Boundaries that occur in no part, opaque attachments, limits at intake",
        {
            "unit/test_message_writer.py": (
                "test_a_boundary_does_not_occur_in_the_content",
                "test_composite_attachments_are_opaque",
            ),
            "unit/test_core_command.py": (
                "test_refuses_with_code_and_field",
                "test_what_is_exactly_at_a_limit_passes",
            ),
        },
    ),
)
