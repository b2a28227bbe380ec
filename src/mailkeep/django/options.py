"""The options of the backend: `OPTIONS` of an entry of `MAILERS`, else the setting `MAILKEEP`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from mailkeep.client import Client
from mailkeep.client.http11 import DEFAULT_URL


class Transport(StrEnum):
    """How mail is handed over."""

    HTTP = "http"  # durable when `send` returns, whatever becomes of the transaction around it
    SQL = "sql"  # with the rows of the transaction around it, or not at all


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Options:
    """What can be said, with defaults; `read_options` checks them."""

    url: str = DEFAULT_URL
    token: str | None = None
    timeout_s: float = 10.0  # of one try
    deadline_s: float = 30.0  # of all tries of one call
    transport: str = Transport.HTTP
    database: str = "default"  # of the transport `sql`: the alias in DATABASES
    ignore_from_email: bool = False
    ignore_headers: tuple[str, ...] = ()
    delivery_class: str | None = None
    source: str | None = None

    @property
    def is_sql(self) -> bool:
        """Whether mail commits with the caller's rows."""
        return self.transport == Transport.SQL

    def client(self) -> Client:
        """Return a client. Raises ValueError."""
        return Client(self.url, token=self.token, timeout_s=self.timeout_s, deadline_s=self.deadline_s)


NAMES = frozenset(field.name for field in fields(Options))


def read_options(given: Mapping[str, Any], place: str) -> Options:
    """Return the options in `given`. Raises `ImproperlyConfigured`, naming `place` and no value."""
    unknown = ", ".join(sorted(map(repr, set(given) - NAMES)))
    if unknown:
        raise ImproperlyConfigured(f"{place} has unknown options: {unknown}")
    options = Options(**given)
    if options.transport not in set(Transport):
        raise ImproperlyConfigured(f"{place}: transport must be 'http' or 'sql'")
    try:
        options.client()
    except ValueError as fault:
        raise ImproperlyConfigured(f"{place}: {fault}") from None
    return options
