"""Files that settings name, judged at the start: secrets and certificates.

Readers raise ValueError with a message that follows the setting's name and never repeats what the file holds.
"""

import ssl
from pathlib import Path
from typing import Final

MAX_SECRET_BYTES: Final = 64 * 1024  # a larger file is a mistaken path, not a secret


def read_bounded(path: Path, max_bytes: int) -> str:
    """Return the text of a file of at most `max_bytes`."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        text = content.decode()
    except OSError as fault:
        raise ValueError(f"can't be read: {fault.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    if not text or len(content) > max_bytes:
        raise ValueError(f"is empty or larger than {max_bytes} bytes")
    return text


def read_secret(path: Path) -> str:
    """Return the secret in a file, less its final newline."""
    secret = read_bounded(path, MAX_SECRET_BYTES).rstrip("\r\n")
    if not secret:
        raise ValueError("is empty")
    return secret


def check_authorities(path: Path) -> None:
    """Refuse a file without certificates of authorities (PEM)."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"{str(path)!r} holds no certificates (PEM)") from None
    except OSError as fault:
        raise ValueError(f"{str(path)!r} can't be read: {fault.strerror}") from None


def certificate_fits(certificate: Path, key: Path | None) -> bool:
    """Return whether a client certificate and its key (None: in the same file) can be used: PEM, and not locked."""
    try:
        # The empty passphrase keeps OpenSSL from asking for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except OSError:  # ssl.SSLError is one
        return False
    return True
