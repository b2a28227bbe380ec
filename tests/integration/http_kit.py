"""What the tests of the whole service share: its paths, commands that can be taken, a next hop, a client."""

import asyncio
import json

DELIVERIES = "/api/v1/internal/deliveries"
BATCH = f"{DELIVERIES}/batch"
LOGIN_CODES = "/api/v1/internal/login-code-deliveries"
FLUSH = "/api/v1/internal/queue/flush"
SETTLE_S = 60.0


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

    async def settled(self, delivery_id, *statuses, attempts=0):
        """Wait until a delivery has one of `statuses`, and so many recorded attempts at least, and return it."""
        async with asyncio.timeout(SETTLE_S):
            while True:
                delivery = (await self.get(f"{DELIVERIES}/{delivery_id}")).json()
                if delivery["status"] in statuses and delivery["attempts"] >= attempts:
                    return delivery
                await asyncio.sleep(0.02)


def command(**fields):
    """Return a command that can be taken."""
    payload = {"to": ["ann@example.org"], "subject": "Hello", "text": "It works."}
    return {"payload_mode": "rendered", "payload": payload | fields.pop("payload", {})} | fields


def login_code(**fields):
    """Return a login code that can be taken."""
    return {"email": "ann@example.org", "code": "482913", "locale": "en"} | fields
