"""TLS of the HTTP listeners: a certificate, and whose client certificates may call (mutual TLS).

TLS 1.2 or newer (RFC 8996, RFC 9325 section 3.1.1). With authorities for clients nobody gets past the handshake without a
certificate of theirs; with names, only those that one of them stands for: subject alternative names, since the subject
itself says nothing (RFC 9525). A certificate that is renewed in its file is used for new connections; that authorities or
names changed takes a restart. Called by `mailkeep.intake.listener`.
"""

import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import structlog

LOOK_EVERY_S: Final = 10.0
"""How often the listener looks whether its certificate was renewed."""


class ListenerTls:
    """The TLS of one listener. `key` None: it is in the certificate's file. Raises OSError for files that can't be used.

    `client_ca`: authorities whose certificates clients must show; `client_names`: as in `dns:orders.internal`, empty: all.
    `name`: of the listener, as it logs.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path | None = None,
        *,
        client_ca: Path | None = None,
        client_names: Iterable[str] = (),
        name: str = "internal_http",
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._client_names = frozenset(client_names)
        self._seen = self._stamps()
        self._log = structlog.get_logger(name)
        self.context = _server_context(certificate, key)
        if client_ca is not None:
            self.context.load_verify_locations(client_ca)
            self.context.verify_mode = ssl.CERT_REQUIRED

    def may_call(self, peer: Mapping[str, Any] | None) -> bool:
        """Return whether the client with the certificate `peer` (as `SSLSocket.getpeercert` gives it) is let in."""
        if not self._client_names:
            return True
        names = (peer or {}).get("subjectAltName", ())
        return not self._client_names.isdisjoint(_spelled(kind, name) for kind, name in names)

    def renew(self) -> None:
        """Take the certificate again if its files changed; one that can't be used is told, and the old one stays."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            _server_context(
                self._certificate, self._key
            )  # half of a pair would break the context that is in use
            self.context.load_cert_chain(self._certificate, self._key, password="")
        except OSError as fault:  # ssl.SSLError is one
            self._log.error("the renewed certificate can't be used", error=fault.strerror)
        else:
            self._log.info("certificate renewed")

    def _stamps(self) -> tuple[int, ...]:
        files = [path for path in (self._certificate, self._key) if path is not None]
        return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in files)


def _server_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    # The empty passphrase keeps OpenSSL from asking for one on the terminal.
    context.load_cert_chain(certificate, key, password="")
    return context


def _spelled(kind: str, name: str) -> str:
    return f"dns:{name.lower()}" if kind == "DNS" else f"{kind.lower()}:{name}"
