"""Certificates: what the sinkhole shows in a TLS handshake, the sound one and the odd ones that its modes ask for.

An authority is made for each sinkhole and lives as long as it does; nothing but its certificate ever leaves, so that a client
can be told to trust it and then meets exactly one fault: an expired certificate, or one of another name. The sound
certificate may be the user's own instead. RFC 5280 section 4.1, RFC 9525. The session asks, `server` makes.
"""

import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mailkeep.sinkhole.script import CERTIFICATES, HOSTNAME, ModeName

USUAL_NAMES: Final = ("localhost", "127.0.0.1", "::1", HOSTNAME, f"*.{HOSTNAME}")
WRONG_NAME: Final = "elsewhere.invalid"
VALIDITY: Final = timedelta(days=30)  # longer than a sinkhole runs
EXPIRED_FOR: Final = timedelta(days=1)
SKEW: Final = timedelta(minutes=5)  # of the clocks of those who look


class Authority:
    """A certificate authority that signs what this process shows."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Mailkeep sinkhole")])
        now = datetime.now(UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - VALIDITY)
            .not_valid_after(now + VALIDITY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(_key_usage(is_authority=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """The certificate of the authority, for clients that shall trust it."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def context(self, names: Sequence[str], *, ended_at: datetime | None = None) -> ssl.SSLContext:
        """Return a server's TLS context with a fresh certificate for `names`, which are domains or IP addresses.

        `ended_at` is when it is no longer valid, a month from now unless given.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        ends_at = ended_at or datetime.now(UTC) + VALIDITY
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(ends_at - VALIDITY, datetime.now(UTC) - SKEW))
            .not_valid_after(ends_at)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=True
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with tempfile.TemporaryDirectory(
            prefix="mailkeep-"
        ) as folder:  # OpenSSL loads chains from files only
            file = Path(folder) / "chain.pem"
            file.touch(0o600)
            file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
            return load_context(file, file)


class Certificates:
    """The TLS contexts of one sinkhole. Without a `sound` one it shows a certificate of its own authority."""

    def __init__(self, sound: ssl.SSLContext | None = None, *, names: Sequence[str] = ()) -> None:
        self.authority = Authority()
        self._names = tuple(dict.fromkeys((*USUAL_NAMES, *names)))
        self._sound = sound or self.authority.context(self._names)
        self._odd: dict[
            ModeName, ssl.SSLContext
        ] = {}  # one for each of `CERTIFICATES`, made when first asked for

    def context(self, mode: ModeName) -> ssl.SSLContext:
        """Return what to show while `mode` is in force."""
        if mode not in CERTIFICATES:
            return self._sound
        if mode not in self._odd:
            self._odd[mode] = self._make(mode)
        return self._odd[mode]

    def _make(self, mode: ModeName) -> ssl.SSLContext:
        if mode is ModeName.CERT_EXPIRED:
            return self.authority.context(self._names, ended_at=datetime.now(UTC) - EXPIRED_FOR)
        if mode is ModeName.CERT_WRONG_NAME:
            return self.authority.context((WRONG_NAME,))
        return Authority().context(self._names)


def load_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a server's TLS context, TLS 1.2 or later (RFC 8996). Raises OSError if the files don't serve."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
