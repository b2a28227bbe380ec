"""Mail addresses: parsed once, at the edge, into a `Mailbox` that later code can trust.

Plain ASCII addresses take a strict and cheap path; the rest (internationalised local parts and domains, quoted
strings) goes to email-validator. Domains are kept as lower-case A-labels (RFC 5890), so that what is compared and
put on the wire is one form. Nothing here resolves names.
"""

import re
from functools import lru_cache
from typing import Final

import msgspec
from email_validator import EmailNotValidError, validate_email

MAX_ADDRESS_OCTETS: Final = 254  # RFC 5321 section 4.5.3.1.3, less the angle brackets
MAX_LOCAL_OCTETS: Final = 64  # RFC 5321 section 4.5.3.1.1
MAX_DISPLAY_CHARS: Final = 200

_ATEXT: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_PLAIN: Final = re.compile(rf"({_ATEXT}+(?:\.{_ATEXT}+)*)@({_LABEL}(?:\.{_LABEL})+)")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BARE: Final = re.compile(r'[^<>"]*')
MAX_TEXT_CHARS: Final = 4 * 254
"""A display name and an address together; longer texts are not even looked at."""
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")

RESERVED_SUFFIXES: Final = (".test", ".example", ".invalid", ".localhost")
"""RFC 2606 and RFC 6761: names that never leave by the default route."""
SINKHOLE_DOMAIN: Final = "sinkhole.test"


class AddressError(ValueError):
    """Not an address we can send to; the message says why and never repeats the address."""


class Mailbox(msgspec.Struct, frozen=True, gc=False):
    """One address. `domain` is a lower-case A-label; `local` is as given; `display` may be any printable text."""

    local: str
    domain: str
    display: str = ""

    @property
    def address(self) -> str:
        """`local@domain`, as it goes on the wire."""
        return f"{self.local}@{self.domain}"

    @property
    def needs_smtputf8(self) -> bool:
        """Whether only a server with SMTPUTF8 (RFC 6531) can take this address."""
        return not self.local.isascii()


def parse_mailbox(text: str) -> Mailbox:
    """Parse `ann@example.org`, `Ann <ann@example.org>` or `"Ann, B." <ann@example.org>`. Raises `AddressError`."""
    plain = _PLAIN.fullmatch(text)
    if plain:
        return _checked(plain[1], plain[2].lower(), "")
    if len(text) > MAX_TEXT_CHARS:
        raise AddressError("is too long for an address")
    check_printable(text)
    text = text.strip()
    if not text.endswith(">"):
        return _parse_address(text)
    name, opening, address = text[:-1].rpartition("<")
    if not opening:
        raise AddressError("not a valid address")
    mailbox = _parse_address(address)
    return Mailbox(mailbox.local, mailbox.domain, _display(name.strip()))


def _display(name: str) -> str:
    quoted = _QUOTED.fullmatch(name)
    if quoted is None and not _BARE.fullmatch(name):
        raise AddressError("the display name must be quoted")
    display = re.sub(r"\\(.)", r"\1", quoted[1]).strip() if quoted else name
    if len(display) > MAX_DISPLAY_CHARS:
        raise AddressError(f"the display name is longer than {MAX_DISPLAY_CHARS} characters")
    return display


def check_printable(text: str) -> None:
    """Raise `AddressError` if `text` holds a control character, a line separator or a lone surrogate."""
    if _UNSAFE.search(text) or _SURROGATE.search(text):
        raise AddressError("contains a control character or line break")


def domain_of(address: str) -> str:
    """Return the domain of an address as it is compared: in lower case, without the dot of the root."""
    return address.rpartition("@")[2].lower().rstrip(".")


def is_reserved(domain: str) -> bool:
    """Whether `domain` (lower case) is reserved for tests and documentation by RFC 2606 / RFC 6761."""
    return f".{domain}".endswith(RESERVED_SUFFIXES)


def is_sinkhole(domain: str) -> bool:
    """Whether `domain` is `sinkhole.test` or below it."""
    return f".{domain}".endswith(f".{SINKHOLE_DOMAIN}")


def _parse_address(text: str) -> Mailbox:
    plain = _PLAIN.fullmatch(text)
    if plain:
        return _checked(plain[1], plain[2].lower(), "")
    local, domain = _validated(text)
    return _checked(local, domain, "")


@lru_cache(maxsize=4096)
def _validated(text: str) -> tuple[str, str]:
    if len(text) > MAX_ADDRESS_OCTETS:
        raise AddressError(f"longer than {MAX_ADDRESS_OCTETS} octets")
    try:
        valid = validate_email(
            text, check_deliverability=False, test_environment=True, allow_quoted_local=True
        )
    except EmailNotValidError as fault:
        raise AddressError("not a valid address") from fault
    return valid.local_part, valid.ascii_domain.lower()


def _checked(local: str, domain: str, display: str) -> Mailbox:
    if len(local.encode()) > MAX_LOCAL_OCTETS:
        raise AddressError(f"the part before @ is longer than {MAX_LOCAL_OCTETS} octets")
    if len(local.encode()) + len(domain) + 1 > MAX_ADDRESS_OCTETS:
        raise AddressError(f"longer than {MAX_ADDRESS_OCTETS} octets")
    return Mailbox(local, domain, display)
