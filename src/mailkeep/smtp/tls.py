"""TLS contexts for next hops: TLS 1.2 at least (RFC 8996), chain and host name verified unless the hop says otherwise.

A pinned certificate needs no authority: the context lets any pass, and `is_pinned` is asked right after the handshake,
before the first command.
"""

import hashlib
import ssl

from mailkeep.smtp.next_hop import NextHop, TlsMode


def tls_context(hop: NextHop) -> ssl.SSLContext | None:
    """Build the context for connections to `hop`, once for all of them; None where TLS is never used.

    Raises OSError if `ca_file` or `client_certificate` can't be used.
    """
    if hop.tls is TlsMode.NONE:
        return None
    context = ssl.create_default_context(cafile=hop.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if hop.fingerprints or not hop.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if hop.client_certificate is not None:
        # The empty passphrase keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(hop.client_certificate, hop.client_key, password="")
    return context


def fingerprint(certificate: bytes | None) -> str:
    """Return the SHA-256 fingerprint of a certificate (DER) in lower-case hexadecimal."""
    return hashlib.sha256(certificate or b"").hexdigest()


def is_pinned(hop: NextHop, certificate: bytes | None) -> bool:
    """Whether `hop` takes the server's certificate (DER), as far as pins are concerned."""
    return not hop.fingerprints or fingerprint(certificate) in hop.fingerprints
