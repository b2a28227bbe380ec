"""TLS contexts for next hops: TLS 1.2 at least (RFC 8996), chain and host name verified unless the hop says otherwise."""

import ssl

from mailkeep.smtp.next_hop import NextHop, TlsMode


def tls_context(hop: NextHop) -> ssl.SSLContext | None:
    """Build the context for connections to `hop`, once for all of them; None where TLS is never used.

    Raises OSError if `ca_file` can't be read or holds no certificate.
    """
    if hop.tls is TlsMode.NONE:
        return None
    context = ssl.create_default_context(cafile=hop.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not hop.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
