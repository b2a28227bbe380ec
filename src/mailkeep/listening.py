"""A listening TCP socket for a host by name or number: what every server here begins with."""

import socket
from typing import cast


def listen(host: str, port: int, *, backlog: int) -> socket.socket:
    """Return a socket that is bound to `host`:`port` (0: a free one) and holds `backlog` connections. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # A name that has both, such as localhost: where every client looks.
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return socket.create_server(cast("tuple[str, int]", address[:2]), family=family, backlog=backlog)
