"""The whole service in the test's process: real PostgreSQL, real listener on a loopback port, real SMTP next hop."""

import asyncio
import json
from contextlib import AsyncExitStack

import httpx2
import pytest
from aiosmtpd.smtp import SMTP

from mailkeep.settings import Settings
from mailkeep.wiring import Service

DELIVERIES = "/api/v1/internal/deliveries"
BATCH = f"{DELIVERIES}/batch"
LOGIN_CODES = "/api/v1/internal/login-code-deliveries"
FLUSH = "/api/v1/internal/queue/flush"
SETTLE_S = 20.0


class NextHop:
    """An SMTP server that answers RCPT with `reply` and keeps what it takes."""

    def __init__(self):
        self.reply = "250 2.1.5 Ok"
        self.messages = []
        self.address = ""

    async def handle_RCPT(self, _server, _session, envelope, address, _options):
        if self.reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.reply

    async def handle_DATA(self, _server, _session, envelope):
        self.messages.append(envelope)
        return "250 2.0.0 Ok"


class Served:
    """A running service and a client that calls it."""

    def __init__(self, service, client):
        self.service = service
        self.client = client
        self.port = service.http_address.port

    async def post(self, path, body, key=None, **headers):
        """POST `body`, as JSON unless it is bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **headers}
        if key is not None:
            headers["idempotency-key"] = key
        return await self.client.post(path, content=content, headers=headers)

    async def get(self, path, **parameters):
        """GET `path`."""
        return await self.client.get(path, params=parameters)

    async def settled(self, delivery_id, *statuses):
        """Wait until a delivery has one of `statuses` and return it."""
        async with asyncio.timeout(SETTLE_S):
            while True:
                delivery = (await self.get(f"{DELIVERIES}/{delivery_id}")).json()
                if delivery["status"] in statuses:
                    return delivery
                await asyncio.sleep(0.02)


def command(**fields):
    """Return a command that can be taken."""
    payload = {"to": ["ann@example.org"], "subject": "Hello", "text": "It works."}
    return {"payload_mode": "rendered", "payload": payload | fields.pop("payload", {})} | fields


def login_code(**fields):
    """Return a login code that can be taken."""
    return {"email": "ann@example.org", "code": "482913", "locale": "en"} | fields


@pytest.fixture
async def next_hop():
    """Run an SMTP server that takes all mail until its `reply` is changed."""
    hop = NextHop()
    serving = await asyncio.get_running_loop().create_server(
        lambda: SMTP(hop, hostname="hop.test"), "127.0.0.1", 0
    )
    hop.address = f"127.0.0.1:{serving.sockets[0].getsockname()[1]}"
    yield hop
    serving.close()


@pytest.fixture
async def serve(dsn):
    """Yield a function that starts a service with the given settings; stub mode unless they say otherwise."""
    async with AsyncExitStack() as stack:

        async def start(**environ):
            base = {
                "MAIL_POSTGRES_DSN": dsn,
                "MAIL_POSTGRES_POOL_SIZE": "4",
                "MAIL_INTERNAL_HTTP_ADDR": "127.0.0.1:0",
                "MAIL_SMTP_MODE": "stub",
                "MAIL_SHUTDOWN_TIMEOUT": "6s",
            }
            service = await Service.start(Settings.load(base | environ))
            stack.push_async_callback(service.stop)
            address = f"http://{service.http_address}"
            client = httpx2.AsyncClient(
                base_url=address, timeout=60, limits=httpx2.Limits(max_connections=250)
            )
            await stack.enter_async_context(client)
            return Served(service, client)

        yield start


@pytest.fixture
async def served(serve):
    """Run a service in stub mode."""
    return await serve()


@pytest.fixture
async def sending(serve, next_hop):
    """Run a service that hands mail to `next_hop`."""
    return await serve(
        MAIL_SMTP_MODE="smtp", MAIL_SMTP_ADDR=next_hop.address, MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example"
    )
