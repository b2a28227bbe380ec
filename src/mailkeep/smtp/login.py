"""Ways to log in, as values: what to answer to each challenge (RFC 4954). Pure; `dialog` speaks it.

PLAIN (RFC 4616), LOGIN (never standardised), CRAM-MD5 (RFC 2195), OAUTHBEARER (RFC 7628) and its forerunner XOAUTH2.
"""

import base64
import hmac
from collections.abc import Callable
from typing import Final

import msgspec

from mailkeep.smtp.capabilities import Capabilities
from mailkeep.smtp.next_hop import AuthMechanism, NextHop

WITH_PASSWORD: Final = (AuthMechanism.PLAIN, AuthMechanism.LOGIN, AuthMechanism.CRAM_MD5)
WITH_PASSWORD_IN_SIGHT: Final = (AuthMechanism.CRAM_MD5, AuthMechanism.PLAIN, AuthMechanism.LOGIN)
WITH_TOKEN: Final = (AuthMechanism.OAUTHBEARER, AuthMechanism.XOAUTH2)


class Login(msgspec.Struct, frozen=True):
    """Who we are at the server `host`:`port`; `secret` is a password or an access token."""

    username: str
    secret: str
    host: str
    port: int

    def __repr__(self) -> str:
        """Show nothing of it."""
        return "Login(…)"


class Exchange(msgspec.Struct, frozen=True):
    """What we say: the initial response, if there is one, then an answer to each challenge (None: it makes no sense).

    A server that refuses a token explains itself in one challenge more; `after_refusal` ends that.
    """

    initial: bytes | None = None
    answers: tuple[Callable[[str], bytes | None], ...] = ()
    after_refusal: bytes | None = None


def choose(hop: NextHop, offered: Capabilities, *, in_sight: bool) -> AuthMechanism | None:
    """Return the way to log in at `hop`, None if none that it may use is offered. `in_sight`: others may listen."""
    usual = WITH_PASSWORD_IN_SIGHT if in_sight else WITH_PASSWORD
    wanted = hop.auth or (WITH_TOKEN if hop.token_command else usual)
    return next((mechanism for mechanism in wanted if mechanism.value in offered.auth), None)


def exchange(mechanism: AuthMechanism, login: Login) -> Exchange:
    """Return what `mechanism` has to say for `login`."""
    username, secret = login.username.encode(), login.secret.encode()
    match mechanism:
        case AuthMechanism.PLAIN:
            return Exchange(b"\0" + username + b"\0" + secret)
        case AuthMechanism.LOGIN:
            return Exchange(answers=(lambda _: username, lambda _: secret))
        case AuthMechanism.CRAM_MD5:
            return Exchange(answers=(lambda challenge: _digest(username, secret, challenge),))
        case AuthMechanism.XOAUTH2:
            return Exchange(b"user=" + username + b"\1auth=Bearer " + secret + b"\1\1", after_refusal=b"")
        case AuthMechanism.OAUTHBEARER:
            name = username.replace(b"=", b"=3D").replace(b",", b"=2C")  # RFC 5801 section 4
            place = f"\1host={login.host}\1port={login.port}\1".encode()
            return Exchange(
                b"n,a=" + name + b"," + place + b"auth=Bearer " + secret + b"\1\1", after_refusal=b"\1"
            )


def encoded(data: bytes) -> bytes:
    """Return `data` as it goes over the wire."""
    return base64.b64encode(data)


def _digest(username: bytes, secret: bytes, challenge: str) -> bytes | None:
    try:
        text = base64.b64decode(challenge, validate=True)
    except ValueError:  # binascii.Error is one
        return None
    return username + b" " + hmac.digest(secret, text, "md5").hex().encode()
