"""How commands find the internal listener of their own settings, and speak TLS to it."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ssl

    from mailkeep.settings import Settings

_END: Final = "-----END CERTIFICATE-----"
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where to find who listens on all


def listener_host(settings: "Settings") -> str:
    """Return the address at which the listener of `settings` is reached from here."""
    host = settings.internal_http_addr.host
    return _ANY_ADDRESS.get(host, host)


def listener_url(settings: "Settings") -> str:
    """Return the URL of the listener of `settings`."""
    host = listener_host(settings)
    scheme = "http" if settings.internal_http_tls_cert is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.internal_http_addr.port}"


def client_tls(settings: "Settings") -> "ssl.SSLContext | None":
    """Return what a command connects with, None where the listener has no TLS.

    It trusts the very certificate that is configured for the listener, whatever its name and authority, so that a command
    on the same machine needs neither. It shows MAIL_INTERNAL_HTTP_CLIENT_CERT where that is given; leaves with one clear line where it is missing.
    """
    import ssl

    from mailkeep.cli.output import fail

    if settings.internal_http_tls_cert is None:
        return None
    if settings.internal_http_tls_client_ca is not None and settings.internal_http_client_cert is None:
        fail("the listener asks for a client certificate; set MAIL_INTERNAL_HTTP_CLIENT_CERT")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is what is trusted
    chain = settings.internal_http_tls_cert.read_text(encoding="ascii", errors="replace")
    context.load_verify_locations(cadata=chain[chain.index("-----BEGIN CERT") : chain.index(_END)] + _END)
    if settings.internal_http_client_cert is not None:
        context.load_cert_chain(
            settings.internal_http_client_cert, settings.internal_http_client_key, password=""
        )
    return context
