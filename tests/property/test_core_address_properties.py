"""Addresses: whatever text comes in, what comes out fits a command and a header, and means one thing."""

import re
from contextlib import suppress

from hypothesis import example, given
from hypothesis import strategies as st

from mailkeep.core.address import AddressError, parse_mailbox

_HOST = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)+"
)
_DOT_ATOM = re.compile(r"[^\s\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff\"(),:;<>@\[\\\]]+")
_QUOTED = re.compile(r'"(?:[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"\\]|\\[\x20-\x7e])*"')

_ATOM = "abcXYZ019!#$%&'*+/=?^_`{|}~-"
LOCALS = st.text(_ATOM + ".", min_size=1, max_size=20)
QUOTED = st.text('ab <>@,;:"\\.é\r\n\0', max_size=10).map(lambda text: f'"{text}"')
DOMAINS = st.one_of(
    st.text("abcxyz0-.", min_size=1, max_size=30).map(lambda text: text + ".org"),
    st.text("aüß例.。ⓔ％＠", min_size=1, max_size=10).map(lambda text: text + ".org"),
)
DISPLAYS = st.text('Ann éß "\\<>,:;@=?\t\r\n\u2028', max_size=20)
TEXTS = st.one_of(
    st.text(),
    st.builds("{}@{}".format, st.one_of(LOCALS, QUOTED, st.text(max_size=8)), DOMAINS),
    st.builds("{} <{}@{}>".format, DISPLAYS, st.one_of(LOCALS, QUOTED), DOMAINS),
    st.builds('"{}" <{}@{}>'.format, DISPLAYS, LOCALS, DOMAINS),
)


@given(TEXTS)
@example("a@b.org\n")
@example("＠@example.org")
def test_what_passes_is_safe_on_the_wire(text):
    """A mailbox that was taken has a host name for a domain, a local part that ends nowhere early, and a bound."""
    with suppress(AddressError):
        mailbox = parse_mailbox(text)
        assert _HOST.fullmatch(mailbox.domain)
        assert _DOT_ATOM.fullmatch(mailbox.local) or _QUOTED.fullmatch(mailbox.local)
        assert len(mailbox.address.encode()) <= 254
        assert mailbox.display == mailbox.display.strip()
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", mailbox.display)


@given(TEXTS)
def test_parsing_what_was_parsed_changes_nothing(text):
    """The canonical form is a fixed point: a stored address read again is the same mailbox."""
    with suppress(AddressError):
        mailbox = parse_mailbox(text)
        again = parse_mailbox(mailbox.address)
        assert (again.local, again.domain) == (mailbox.local, mailbox.domain)


@given(TEXTS)
def test_refusing_is_an_address_error_and_nothing_else(text):
    """No text whatever raises anything but `AddressError`."""
    with suppress(AddressError):
        parse_mailbox(text)


_PRINTABLE = st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp"))


@given(st.text(_PRINTABLE, max_size=40))
def test_a_quoted_name_is_kept_as_written(name):
    """Any printable name survives its quotes, backslashes and commas."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    assert parse_mailbox(f'"{escaped}" <ann@example.org>').display == name.strip()


@given(
    st.text(_ATOM, min_size=1, max_size=20), st.sampled_from(["example.org", "EXAMPLE.org", "Example.Org"])
)
def test_domains_are_compared_in_one_case(local, domain):
    """The case of a domain means nothing; that of a local part is the receiver's business and is kept."""
    mailbox = parse_mailbox(f"{local}@{domain}")
    assert mailbox == parse_mailbox(f"{local}@example.org")
    assert mailbox.local == local
