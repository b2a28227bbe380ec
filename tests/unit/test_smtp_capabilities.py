"""What is read from the answer to EHLO."""

import pytest

from mailkeep.smtp.capabilities import Capabilities, parse_capabilities
from mailkeep.smtp.reply import ReplyParser


def offered(*lines):
    """Parse an answer to EHLO with these lines after the greeting."""
    data = [f"250-{line}\r\n" for line in ("host.test greets you", *lines)]
    data[-1] = data[-1].replace("-", " ", 1)
    (reply,) = ReplyParser().feed("".join(data).encode())
    return parse_capabilities(reply)


def test_everything_we_use_is_found():
    """Keywords count in any letter case; unknown ones are passed over."""
    assert offered(
        "pipelining",
        "SIZE 52428800",
        "VRFY",
        "STARTTLS",
        "AUTH PLAIN login",
        "ENHANCEDSTATUSCODES",
        "8BITMIME",
        "SMTPUTF8",
    ) == Capabilities(
        starttls=True,
        auth=frozenset({"PLAIN", "LOGIN"}),
        pipelining=True,
        size=True,
        max_size_bytes=52428800,
        eightbitmime=True,
        smtputf8=True,
        enhancedstatuscodes=True,
    )


def test_the_first_line_is_a_greeting():
    """A host named after an extension offers nothing by that."""
    (reply,) = ReplyParser().feed(b"250 PIPELINING\r\n")
    assert parse_capabilities(reply) == Capabilities()


@pytest.mark.parametrize("line", ["SIZE", "SIZE 0", "SIZE lots", "SIZE -1", "SIZE " + "9" * 21, "SIZE ²"])
def test_a_size_without_a_usable_limit_is_no_limit(line):
    """The parameter is offered; a bound that is absent, zero or not a number binds nothing."""
    capabilities = offered(line)
    assert (capabilities.size, capabilities.max_size_bytes) == (True, 0)


def test_old_spelling_of_auth():
    """`AUTH=LOGIN`, from before RFC 4954, adds to what `AUTH` says."""
    assert offered("AUTH PLAIN", "AUTH=LOGIN").auth == {"PLAIN", "LOGIN"}


def test_an_empty_line_offers_nothing():
    """Odd lines do no harm."""
    assert offered("", "   ") == Capabilities()
