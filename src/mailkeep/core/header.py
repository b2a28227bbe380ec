"""Whom the header of a mail names: read from bytes that were written here, for an erasure to find them by."""

from email import message_from_string, policy
from email.headerregistry import AddressHeader
from typing import Final

_NAMING: Final = ("From", "Sender", "Reply-To", "To", "Cc")
_POLICY: Final = policy.SMTPUTF8


def named_in(message: bytes) -> tuple[str, ...]:
    """Return the addresses that the header of `message` (CRLF lines) names, each once; what can't be read names nobody."""
    text = message.partition(b"\r\n\r\n")[0].decode("utf-8", "replace")
    header = message_from_string(f"{text}\r\n\r\n", policy=_POLICY)
    fields = [field for name in _NAMING for field in header.get_all(name, ())]
    found = [
        address.addr_spec
        for field in fields
        if isinstance(field, AddressHeader)
        for address in field.addresses
    ]
    return tuple(dict.fromkeys(address for address in found if "@" in address))
