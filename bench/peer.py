"""A peer: a mail service that runs, takes mail on this machine and hands it to the sink."""

import socket
from collections.abc import Callable
from enum import StrEnum
from typing import Final

import msgspec

SERVICE: Final = "service"
"""The root of `Peer.roots` that is the service itself, where databases beside it have roots of their own."""


class Intake(StrEnum):
    """What a peer takes in, and over what."""

    HTTP_RENDERED = "HTTP, rendered"
    HTTP_TEMPLATE = "HTTP, template"
    LOGIN_CODE = "HTTP, login code"
    STREAM = "Redis Stream"
    SQL = "SQL"
    SMTP = "SMTP"
    SMTP_FINISHED = "SMTP, the mail of the template"
    HTTP_BIG = "HTTP, 10 MB"


class Peer(msgspec.Struct, frozen=True):
    """One running peer.

    `ways` says where each intake is reached: a port of 127.0.0.1, Redis's socket or PostgreSQL's DSN. `roots` are the
    process ids whose trees are its parts, and together all of it; `facts` go into the report. `count_parked` counts what a
    peer keeps that sends nothing; None: it sends to the sink. `measuring` are processes that run for the measurement only.
    `environment` is what its commands are run with.
    """

    name: str
    intake: Intake
    ways: dict[Intake, str]
    roots: dict[str, int]
    facts: dict[str, str]
    count_parked: Callable[[], int] | None = None
    measuring: dict[str, int] = msgspec.field(default_factory=dict)
    environment: dict[str, str] = msgspec.field(default_factory=dict)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on; the caller takes it soon."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
