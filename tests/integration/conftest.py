"""The whole service in the test's process: real PostgreSQL, real listener on a loopback port, real SMTP next hop."""

import asyncio
from contextlib import AsyncExitStack

import httpx2
import pytest
import structlog
from aiosmtpd.smtp import SMTP
from http_kit import NextHop, Served

from mailkeep.settings import Settings
from mailkeep.wiring import Service


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
        MAIL_SMTP_MODE="smtp",
        MAIL_SMTP_ADDR=next_hop.address,
        MAIL_SMTP_FROM_EMAIL="mail@mailkeep.example",
        MAIL_RETRY_LADDER_AUTH="5m",
    )


@pytest.fixture
def log_lines():
    """Gather what is logged while the test runs, as written by the callers."""
    with structlog.testing.capture_logs() as lines:
        yield lines
