"""TLS contexts for next hops: TLS 1.2 at least (RFC 8996), chain and host name verified unless the hop says otherwise.

A pinned certificate needs no authority: the context lets any pass, and `is_pinned` is asked right after the handshake,
before the first command.
"""

import hashlib
import ssl
from typing import Final

from mailkeep.smtp.next_hop import NextHop, TlsMode

NO_TLS_SPOKEN: Final = "the server speaks no TLS here"
_NO_VERSION: Final = "the server speaks no TLS 1.2 or newer"
_NO_CIPHER: Final = "the server takes none of our ciphers"
_WORDS: Final = {
    "WRONG_VERSION_NUMBER": NO_TLS_SPOKEN,
    "RECORD_LAYER_FAILURE": NO_TLS_SPOKEN,  # the same since OpenSSL 3.2
    "TLSV1_ALERT_PROTOCOL_VERSION": _NO_VERSION,
    "UNSUPPORTED_PROTOCOL": _NO_VERSION,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": _NO_CIPHER,
    "UNEXPECTED_EOF_WHILE_READING": "the server ended the connection",
}
"""OpenSSL's names for what happens most, in words; the others stay as they are, to be looked up."""


def tls_context(hop: NextHop) -> ssl.SSLContext | None:
    """Build the context for connections to `hop`, once for all of them; None where TLS is never used.

    Raises OSError if `ca_file` or `client_certificate` can't be used.
    """
    if hop.tls is TlsMode.NONE:
        return None
    context = ssl.create_default_context(cafile=hop.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False  # RFC 9525 section 2
    if hop.fingerprints or not hop.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if hop.client_certificate is not None:
        # The empty passphrase keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(hop.client_certificate, hop.client_key, password="")
    return context


def told(fault: ssl.SSLError) -> str:
    """Return what went wrong: what is not right about the certificate, or with the handshake."""
    reason = fault.reason or ""
    return getattr(fault, "verify_message", None) or _WORDS.get(reason, reason)


def fingerprint(certificate: bytes | None) -> str:
    """Return the SHA-256 fingerprint of a certificate (DER) in lower-case hexadecimal."""
    return hashlib.sha256(certificate or b"").hexdigest()


def is_pinned(hop: NextHop, certificate: bytes | None) -> bool:
    """Whether `hop` takes the server's certificate (DER), as far as pins are concerned."""
    return not hop.fingerprints or fingerprint(certificate) in hop.fingerprints
