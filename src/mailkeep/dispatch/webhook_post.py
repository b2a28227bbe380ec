"""Posts events to one webhook: signed, bounded in time and size, and only to where it may go.

The guard: unless the webhook has `allow_private`, the host's addresses are looked up and every one of them must be public;
the connection goes to one of exactly those, without a second look-up, so that a name that changes its address in between
(DNS rebinding) leads nowhere. The certificate is verified for the host's name. Redirects are not followed: their target
was never judged. Of the answer only the status counts. It raises nothing that a receiver can bring about.
"""

import asyncio
import ipaddress
import ssl
import time
from collections.abc import Iterable
from typing import Final

import httpcore2
import msgspec

from mailkeep.core.webhook import parse_secret, sign
from mailkeep.settings.webhooks import WebhookSettings
from mailkeep.smtp.lookup import Lookups
from mailkeep.smtp.next_hop import HopAddress
from mailkeep.smtp.session import SessionBrokenError
from mailkeep.version import __version__

TIMEOUT_S: Final = 15.0
"""For one post with all its phases; the lower end of what the standard recommends."""
LOOK_UP_S: Final = 5.0
KEEPALIVE_S: Final = 30.0
MAX_ANSWER_BYTES: Final = 64 * 1024
"""Read of an answer, so that its connection can be used again; with more to come it is closed."""
MAX_PLACES_TRIED: Final = 3
GONE: Final = 410

_V6_OF_V4: Final = ipaddress.IPv6Network("64:ff9b::/96")  # NAT64, RFC 6052


class Posted(msgspec.Struct, frozen=True):
    """What became of a post: `problem` is None when the receiver took it, `gone` when it never will again."""

    problem: str | None = None
    gone: bool = False


class UnsafeAddressError(httpcore2.ConnectError):
    """The host is at an address that a webhook may not be at."""


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet; those that wrap another are judged by that one, too."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.is_site_local or address.teredo is not None:
            return False
        inner = address.ipv4_mapped or address.sixtofour
        if address in _V6_OF_V4:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    return address.is_global and not address.is_multicast and not address.is_reserved


class _GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to the addresses that it looked up and judged itself."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._lookups = Lookups(LOOK_UP_S)
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            places = await self._lookups.places(HopAddress(host, port))
        except SessionBrokenError as fault:
            raise httpcore2.ConnectError("its host can't be looked up") from fault
        addresses = [str(place.address[0]) for place in places]
        if not self._allow_private and not all(map(is_public, addresses)):
            raise UnsafeAddressError("its host is at an address that is not public (allow_private is false)")
        problem: Exception = httpcore2.ConnectError("its host has no address")
        for address in addresses[:MAX_PLACES_TRIED]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as fault:
                problem = fault
        raise problem


class WebhookPost:
    """Posts to one webhook. Close it in the end."""

    def __init__(self, webhook: WebhookSettings, *, timeout_s: float = TIMEOUT_S) -> None:
        self._url = webhook.url.reveal()
        self._keys = [parse_secret(secret.reveal()) for secret in webhook.secrets]
        self._timeout_s = timeout_s
        cafile = None if webhook.ca_file is None else str(webhook.ca_file)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(cafile=cafile),
            max_connections=webhook.concurrency,
            keepalive_expiry=KEEPALIVE_S,
            network_backend=_GuardedNetwork(allow_private=webhook.allow_private),
        )

    async def post(self, message_id: str, body: bytes) -> Posted:
        """Post `body`, JSON, as the message of this id; tells what became of it."""
        timestamp_s = int(time.time())
        headers: dict[bytes | str, bytes | str] = {
            "content-type": "application/json",
            "user-agent": f"mailkeep/{__version__}",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": sign(self._keys, message_id, timestamp_s, body),
        }
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._answer(headers, body)
        except (TimeoutError, httpcore2.TimeoutException):
            return Posted(f"it did not answer within {self._timeout_s:g} s")
        except (httpcore2.NetworkError, httpcore2.ProtocolError, ssl.SSLError, OSError) as fault:
            return Posted(str(fault) or type(fault).__name__)

    async def _answer(self, headers: dict[bytes | str, bytes | str], body: bytes) -> Posted:
        async with self._pool.stream("POST", self._url, headers=headers, content=body) as response:
            read_bytes = 0
            async for piece in response.aiter_stream():
                read_bytes += len(piece)
                if read_bytes > MAX_ANSWER_BYTES:
                    break
        if 200 <= response.status < 300:
            return Posted()
        return Posted(f"it answered {response.status}", gone=response.status == GONE)

    async def close(self) -> None:
        """Close its connections."""
        await self._pool.aclose()
