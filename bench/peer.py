"""A peer: a mail service that runs, takes mail on a loopback port and hands it to the sink."""

import socket
from enum import StrEnum

import msgspec


class Intake(StrEnum):
    """What a peer takes in, and over what."""

    HTTP_RENDERED = "HTTP, rendered"
    HTTP_TEMPLATE = "HTTP, template"
    SMTP = "SMTP"


class Peer(msgspec.Struct, frozen=True):
    """One running peer. `roots` are the process ids whose trees are all of it; `facts` go into the report."""

    name: str
    intake: Intake
    port: int
    roots: tuple[int, ...]
    facts: dict[str, str]


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on; the caller takes it soon."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
