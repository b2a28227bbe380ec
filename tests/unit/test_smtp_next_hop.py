"""The next hop as a value: what it refuses, and what it never shows."""

import ssl

import pytest

from mailkeep.core.outcome import Phase
from mailkeep.smtp.next_hop import AuthMechanism, HopAddress, NextHop, Timers, TlsMode
from mailkeep.smtp.tls import tls_context

SERVER = (HopAddress("mail.example.test", 25),)


def test_the_password_is_never_shown():
    """Neither repr nor a format of it holds the login."""
    hop = NextHop("main", (HopAddress("mail.example.test", 587),), username="ann", password="a-canary-secret")
    assert "a-canary-secret" not in f"{hop} {hop!r}"
    assert "ann" not in repr(hop)


@pytest.mark.parametrize(
    "changes",
    [
        {"helo_name": "a b"},
        {"helo_name": "a\r\nMAIL FROM:<>"},
        {"helo_name": ""},
        {"username": "ann"},
        {"password": "x"},
        {"username": "a\0b", "password": "x"},
        {"username": "a", "password": "x\0"},
        {"username": "a", "password": "\udcff"},
        {"addresses": ()},
        {"addresses": (HopAddress("mail.example.test", 0),)},
        {"addresses": (HopAddress("mail.example.test", 65536),)},
        {"max_connections": 0},
        {"messages_per_connection": 0},
        {"messages_per_s": -1.0},
        {"token_command": ("print-token",)},
        {"username": "a", "password": "x", "auth": (AuthMechanism.XOAUTH2,)},
    ],
)
def test_what_could_never_work_is_refused(changes):
    """Configuration that would break a command or a login fails when it is made."""
    with pytest.raises(ValueError, match=r"."):
        NextHop(**({"name": "main", "addresses": SERVER} | changes))


def test_the_cap_spares_the_dot():
    """`MAIL_SMTP_TIMEOUT` cuts every phase but the dot, which has its own; a smaller default stays."""
    timers = Timers().capped(15, dot_s=400)
    assert timers.by_phase()[Phase.DOT] == 400
    assert timers.data_s == 15
    assert timers.connect_s == 10
    assert timers.quit_s == 2
    assert max(limit for phase, limit in timers.by_phase().items() if phase is not Phase.DOT) == 15


def test_every_phase_of_a_session_has_a_timer():
    """A phase without a limit would be a worker lost."""
    assert set(Timers().by_phase()) == set(Phase) - {Phase.RENDER}
    with pytest.raises(ValueError, match="longer than zero"):
        Timers(mail_s=0)


def test_tls_is_1_2_at_least_and_verified_by_default():
    """The context checks chain and name unless told not to; without TLS there is none."""
    hop = NextHop("main", SERVER)
    context = tls_context(hop)
    assert (context.minimum_version, context.verify_mode, context.check_hostname) == (
        ssl.TLSVersion.TLSv1_2,
        ssl.CERT_REQUIRED,
        True,
    )
    lax = tls_context(NextHop("main", SERVER, verify=False))
    assert (lax.verify_mode, lax.check_hostname) == (ssl.CERT_NONE, False)
    assert tls_context(NextHop("main", SERVER, tls=TlsMode.NONE)) is None
